"""The loss and its gradients beside the same model in NumPy, float64, one document at a time.

B batch, T length, D model, V vocabulary, N heads, H head size. The batch and its weights are written by hand.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxagent.config import Config, Data, Mesh, Model, Objective, Optimizer, Schedule, Training
from maxagent.data.batch import FIELD_DTYPES, Batch
from maxagent.models import transformer
from maxagent.parallel import Layout, make_mesh
from maxagent.parallel.processes import to_global
from maxagent.traces.schema import Flag, Role, Status
from maxagent.training import optimizer as optimizers
from maxagent.training import state as states
from maxagent.training.step import train_step

# A word is what follows one place: role.status+flags:weight. `end` is a document's last place, `|` begins the next document of
# the row. At step 50 the weight of an observation is halfway from 1 to 0.3; that of a failed call is overridden.
ROWS = (
  "tools:.1 goal:.1 call.ok:1 call.err:.25 args.err:1 obs.err:.65 back:1 end | web:1 web:1 end",
  "system:.1 tools+hole:1 call.ok+hole:1 call+muted:0 obs.ok+added:0 answer+decision:1 user+hole+muted:0 marker.ok:1 end",
  "end | plan:1 think:1 reflect:1 say:1 | web+continued:1 web+added:0 web+muted+continued:0 web:1 obs.ok:.65 obs:.65 obs:.65",
  "",
  "call+muted:0 call+added:0 args+muted:0 end | tools+added:0 web+muted:0 web+muted:0 end",
  "goal:.1 goal:.1 user:.1 goal:.1 goal:.1 | goal:.1 goal:.1 system:.1 goal:.1 goal:.1 end",
  "web+hole:1 call.err+hole:1 call.err:.25 back+muted:0 call.ok+added:0 back+added+decision:1 | call.ok:1 args:1 answer:1 end",
  "end | end | end | end",
)
B, T, V, D, STEP = 8, 12, 96, 16, 50
Z_LOSS, MTP_WEIGHT, WINDOW, EPSILON = 0.01, 0.3, 3, 1e-6
CONFIG = Config(
  model=Model(
    vocab_size=V, hidden_size=D, mlp_size=24, heads=4, kv_heads=2, head_size=4, pattern=("local", "global"), repeats=2,
    window_tokens=WINDOW, norm_epsilon=EPSILON, tied_embeddings=False, init_scale=0.5, compute_dtype="float32",
    attention_block_tokens=4,
  ),
  data=Data(sequence_tokens=T, global_batch=B),
  objective=Objective(
    overrides=(("call.err", 0.25),), schedule=(("obs", ((0, 1.0), (2 * STEP, 0.3))),), z_loss=Z_LOSS, mtp_weight=MTP_WEIGHT,
    chunk_tokens=4,
  ),
  # Without momentum and clipping the optimizer's first moment is the gradient.
  optimizer=Optimizer(b1=0.0, clip_norm=None),
  schedule=Schedule(warmup_steps=0),
  training=Training(steps=2 * STEP),
)  # fmt: skip


def _config(microbatches: int, depth: int = 0) -> Config:
  model = dataclasses.replace(CONFIG.model, mtp_depth=depth)
  return dataclasses.replace(CONFIG, model=model, training=dataclasses.replace(CONFIG.training, microbatches=microbatches))


@functools.cache
def _batch() -> tuple[Batch, np.ndarray]:
  """The rows, every token another one, and their weights [B, T] as written."""
  rng = np.random.default_rng(0)
  fields = {name: np.zeros((B, T), dtype) for name, dtype in FIELD_DTYPES.items()}
  fields["tokens"][:] = rng.permutation(V).reshape(B, T)
  fields["roles"][:] = Role.PAD
  weights_BT = np.zeros((B, T))
  for b, row in enumerate(ROWS):
    t = 0
    for segment, document in enumerate(row.split("|"), start=1):
      for position, word in enumerate(document.split()):
        fields["segments"][b, t], fields["positions"][b, t] = segment, position
        if word != "end":
          described, _, weight = word.partition(":")
          kind, *flags = described.upper().split("+")
          role, _, status = kind.partition(".")
          weights_BT[b, t] = float(weight)
          fields["roles"][b, t], fields["statuses"][b, t] = Role[role], Status[status or "NA"]
          fields["flags"][b, t] = sum(Flag[flag] for flag in flags)
          fields["targets"][b, t] = rng.integers(V)  # where the document goes on in another row
        if position:
          fields["targets"][b, t - 1] = fields["tokens"][b, t]
        t += 1
  return Batch(**fields), weights_BT


def _documents() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Tokens, targets and weights of one document after the other."""
  batch, weights_BT = _batch()
  for b in range(B):
    for segment in range(1, batch.segments[b].max() + 1):
      inside = batch.segments[b] == segment
      yield batch.tokens[b, inside], batch.targets[b, inside], weights_BT[b, inside]


def _step(config: Config, params: Any, mesh: Mesh | None = None) -> tuple[dict[str, Any], Any]:
  """Metrics of one real training step at step 50, and the gradient that reached the optimizer."""
  layout = Layout(None if mesh is None else make_mesh(mesh))
  optimizer = optimizers.build(config)
  state = states.TrainState(step=jnp.asarray(STEP, jnp.int32), params=params, opt_state=optimizer.init(params))
  if layout.mesh is not None:
    state = jax.device_put(state, states.shardings(config, optimizer, layout))
  step = jax.jit(functools.partial(train_step, config=config, optimizer=optimizer, layout=layout))
  after, metrics = step(state, to_global(_batch()[0], layout))
  return jax.device_get((metrics, after.opt_state[0].mu))


def _log_z(logits_TV: np.ndarray) -> np.ndarray:
  top_T1 = logits_TV.max(-1, keepdims=True)
  return (top_T1 + np.log(np.exp(logits_TV - top_T1).sum(-1, keepdims=True)))[:, 0]


# ---- the part that has a closed form: without what layers add, a hidden state is the token's embedding over its size


@functools.cache
def _bare() -> Any:
  """Parameters whose layers add nothing to the stream."""
  params = jax.jit(transformer.init, static_argnums=0)(CONFIG.model, jax.random.key(0))
  for layer in params["pattern"].values():
    layer["attention"]["out"], layer["mlp"]["down"] = (
      jnp.zeros_like(x) for x in (layer["attention"]["out"], layer["mlp"]["down"])
    )
  return params


def _closed_form() -> tuple[float, dict[str, np.ndarray]]:
  """The loss, and its gradients with respect to head, hidden states (through the embedding, as no token repeats) and norm."""
  params, (batch, weights_BT) = _bare(), _batch()
  table_VD, head_DV = (np.asarray(params["embedding"][name], np.float64) for name in ("table", "head"))
  x_MD, targets_M, weights_M = table_VD[batch.tokens.ravel()], batch.targets.ravel(), weights_BT.ravel()
  size_M1 = np.sqrt((x_MD**2).mean(-1, keepdims=True) + EPSILON)
  hidden_MD = x_MD / size_M1
  logits_MV = hidden_MD @ head_DV
  log_z_M = _log_z(logits_MV)
  p_MV, chosen_MV = np.exp(logits_MV - log_z_M[:, None]), np.eye(V)[targets_M]
  share_M = weights_M / weights_M.sum()
  loss = share_M @ (log_z_M - (logits_MV * chosen_MV).sum(-1) + Z_LOSS * log_z_M**2)
  d_logits_MV = share_M[:, None] * (p_MV - chosen_MV + 2 * Z_LOSS * log_z_M[:, None] * p_MV)
  d_hidden_MD = d_logits_MV @ head_DV.T
  d_table_VD = np.zeros_like(table_VD)
  d_table_VD[batch.tokens.ravel()] = (d_hidden_MD - hidden_MD * (hidden_MD * d_hidden_MD).mean(-1, keepdims=True)) / size_M1
  return loss, {"head": hidden_MD.T @ d_logits_MV, "table": d_table_VD, "scale": (d_hidden_MD * hidden_MD).sum(0)}


@pytest.mark.parametrize(("microbatches", "mesh"), [(1, None), (4, None), (1, Mesh(context=4)), (2, Mesh(fsdp=2, tensor=2))])
def test_loss_and_gradients_of_hidden_states_and_head_equal_their_closed_form(microbatches: int, mesh: Mesh | None):
  sums = [_batch()[1][part::microbatches].sum() for part in range(microbatches)]
  assert len(set(sums)) == microbatches  # parts of unequal weight
  metrics, grads = _step(_config(microbatches), _bare(), mesh)
  loss, expected = _closed_form()
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
  np.testing.assert_allclose(metrics["sums"].weight, _batch()[1].sum(), rtol=1e-6)
  assert metrics["sums"].supervised == (_batch()[1] > 0).sum()
  for name, found in (grads["embedding"] | grads["final_norm"]).items():
    np.testing.assert_allclose(found, expected[name], atol=2e-6 * np.abs(expected[name]).max())


# ---- the whole model, written out


def _norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * scale


def _turned(x_NTH: np.ndarray) -> np.ndarray:
  half = x_NTH.shape[-1] // 2
  angles = np.arange(x_NTH.shape[1])[:, None] * 10_000.0 ** (-np.arange(half) / half)
  turned = (x_NTH[..., :half] + 1j * x_NTH[..., half:]) * np.exp(1j * angles)
  return np.concatenate([turned.real, turned.imag], axis=-1)


def _layer(x_TD: np.ndarray, layer: Any, *, local: bool) -> np.ndarray:
  attention, mlp = layer["attention"], layer["mlp"]
  h_TD = _norm(x_TD, layer["attention_norm"]["scale"])
  q, k, v = (np.einsum("TD,DNH->NTH", h_TD, attention[name]) for name in ("query", "key", "value"))
  q, k = _norm(q, attention["query_norm"]["scale"]), _norm(k, attention["key_norm"]["scale"])
  q, k = (_turned(q), _turned(k)) if local else (q, k)
  k, v = (np.repeat(x, len(q) // len(x), axis=0) for x in (k, v))
  distance_TS = np.subtract.outer(np.arange(len(x_TD)), np.arange(len(x_TD)))
  seen_TS = (distance_TS >= 0) & (distance_TS < (WINDOW if local else T))
  p_NTS = np.where(seen_TS, np.exp(np.einsum("NTH,NSH->NTS", q, k) / np.sqrt(q.shape[-1])), 0)
  x_TD = x_TD + np.einsum("NTS,NSH,NHD->TD", p_NTS / p_NTS.sum(-1, keepdims=True), v, attention["out"])
  h_TD = _norm(x_TD, layer["mlp_norm"]["scale"])
  gate_TF = h_TD @ mlp["gate"]
  return x_TD + (gate_TF / (1 + np.exp(-gate_TF)) * (h_TD @ mlp["up"])) @ mlp["down"]


def _states(params: Any, tokens_T: np.ndarray) -> Iterator[np.ndarray]:
  """What the head reads of one document: for the next token, then for those further on, each depth one place shorter."""
  x_TD = params["embedding"]["table"][tokens_T]
  for repeat in range(CONFIG.model.repeats):
    for i, kind in enumerate(CONFIG.model.pattern):
      x_TD = _layer(x_TD, jax.tree.map(lambda leaf: leaf[repeat], params["pattern"][str(i)]), local=kind == "local")  # noqa: B023
  state_TD = _norm(x_TD, params["final_norm"]["scale"])
  yield state_TD
  for k, depth in enumerate(params.get("mtp", {}).values(), start=1):
    if k >= len(tokens_T):
      return
    before_TD = _norm(state_TD[:-1], depth["state_norm"]["scale"])
    token_TD = _norm(params["embedding"]["table"][tokens_T[k:]], depth["token_norm"]["scale"])
    x_TD = np.concatenate([before_TD, token_TD], axis=-1) @ depth["projection"]
    state_TD = _norm(_layer(x_TD, depth["layer"], local=False), depth["final_norm"]["scale"])
    yield state_TD


def _means(params: Any, depth: int) -> np.ndarray:
  """[1 + K]: the mean loss over next tokens, and at every depth."""
  sums_K2 = np.zeros((1 + depth, 2))
  for tokens_T, targets_T, weights_T in _documents():
    for k, state_TD in enumerate(_states(params, tokens_T)):
      logits_TV = state_TD @ params["embedding"]["head"]
      log_z_T = _log_z(logits_TV)
      losses_T = log_z_T - logits_TV[np.arange(len(logits_TV)), targets_T[k:]] + Z_LOSS * log_z_T**2
      sums_K2[k] += weights_T[k:] @ losses_T, weights_T[k:].sum()
  return sums_K2[:, 0] / sums_K2[:, 1]


def _total(params: Any, depth: int) -> float:
  next_token, *further = _means(params, depth)
  return next_token + MTP_WEIGHT * float(np.mean(further)) if further else next_token


def _scattered(config: Config, key: jax.Array) -> Any:
  """First values, each of them changed: norms begin as ones, which would hide a norm that is left out."""
  return jax.tree.map(
    lambda leaf: leaf * (1 + 0.3 * jax.random.normal(jax.random.fold_in(key, leaf.size), leaf.shape)),
    transformer.init(config.model, key),
  )


@pytest.mark.parametrize(
  ("depth", "microbatches", "mesh"), [(0, 1, None), (1, 1, None), (2, 2, Mesh(data=1, fsdp=2, context=2, tensor=2))]
)
def test_loss_and_gradients_of_every_parameter_equal_a_model_written_out(depth: int, microbatches: int, mesh: Mesh | None):
  config = _config(microbatches, depth)
  params = jax.jit(_scattered, static_argnums=0)(config, jax.random.key(1))
  metrics, grads = _step(config, params, mesh)
  exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(params))
  means = _means(exact, depth)
  np.testing.assert_allclose(metrics["loss"], means[0], rtol=1e-6)
  np.testing.assert_allclose(metrics["sums"].mtp_loss / metrics["sums"].mtp_weight, means[1:], rtol=1e-6)
  rng, leaves = np.random.default_rng(2), jax.tree.leaves(exact)
  for n, (grad, leaf) in enumerate(zip(jax.tree.leaves(grads), leaves, strict=True)):
    direction = rng.standard_normal(leaf.shape)

    def along(distance: float, n: int = n, leaf: np.ndarray = leaf, direction: np.ndarray = direction) -> float:
      moved = [*leaves[:n], leaf + distance * direction, *leaves[n + 1 :]]
      return _total(jax.tree.unflatten(jax.tree.structure(exact), moved), depth)

    slope = (along(1e-5) - along(-1e-5)) / 2e-5
    size = np.linalg.norm(grad) * np.linalg.norm(direction) / np.sqrt(leaf.size)
    assert size > 0
    np.testing.assert_allclose(np.vdot(grad, direction), slope, atol=1e-5 * size)
