from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxagent.config import Config, Data, Mesh, Model, Source
from maxagent.data.batch import FIELD_DTYPES, Batch
from maxagent.evals.heldout import heldout_losses
from maxagent.models import transformer
from maxagent.parallel import Layout, make_mesh
from maxagent.traces.schema import Role

ROWS, LENGTH, VOCABULARY = 8, 16, 64


def _config(rows: int) -> Config:
  model = Model(
    vocab_size=VOCABULARY, hidden_size=16, mlp_size=16, heads=2, kv_heads=2, head_size=8, pattern=("local", "global"),
    compute_dtype="float32", attention_block_tokens=16,
  )  # fmt: skip
  data = Data(sources=(Source(name="web", path="w"), Source(name="acts", path="a")), sequence_tokens=LENGTH, global_batch=rows)
  return Config(model=model, data=data)


@pytest.fixture(scope="module")
def params() -> Any:
  return jax.jit(transformer.init, static_argnums=0)(_config(ROWS).model, jax.random.key(0))


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  ids = rng.integers(0, VOCABULARY, size=(ROWS, LENGTH + 1))
  lengths = np.array([16, 3, 9, 16, 1, 12, 7, 16])[:, None]
  inside = np.arange(LENGTH)[None] < lengths
  fields = {name: np.zeros((ROWS, LENGTH), dtype) for name, dtype in FIELD_DTYPES.items()}
  fields["tokens"][:], fields["targets"][:] = ids[:, :-1], ids[:, 1:]
  fields["segments"][:] = inside
  fields["positions"][:] = np.arange(LENGTH)[None]
  fields["sources"][:] = (np.arange(ROWS) >= 3)[:, None]  # sorted by name: acts, web
  roles = np.where(np.arange(ROWS)[:, None] >= 3, Role.WEB, rng.choice([Role.CALL, Role.OBS], size=(ROWS, LENGTH)))
  fields["roles"][:] = np.where(inside, roles, Role.PAD)
  return fields


def _batches(rows: dict[str, np.ndarray], size: int) -> list[Batch]:
  return [Batch(**{name: field[i : i + size] for name, field in rows.items()}) for i in range(0, ROWS, size)]


def _expected(params: Any, rows: dict[str, np.ndarray]) -> np.ndarray:
  model = _config(ROWS).model
  hidden_BTD = transformer.hidden_states(
    params,
    jnp.asarray(rows["tokens"]),
    segments_BT=jnp.asarray(rows["segments"]),
    positions_BT=jnp.asarray(rows["positions"]),
    config=model,
    layout=Layout(),
  )
  log_probs_BTV = jax.nn.log_softmax(hidden_BTD @ transformer.head(params, model), axis=-1)
  return -np.take_along_axis(np.asarray(log_probs_BTV), rows["targets"][..., None], axis=-1)[..., 0]


def test_losses_are_means_over_the_tokens_of_a_role_and_of_a_source(params: Any, rows: dict[str, np.ndarray]):
  losses = heldout_losses(params, _batches(rows, ROWS), config=_config(ROWS), layout=Layout())
  expected = _expected(params, rows)
  present = rows["roles"] != Role.PAD
  for name, members in {
    "source/acts": present & (rows["sources"] == 0),
    "source/web": present & (rows["sources"] == 1),
    "role/call": rows["roles"] == Role.CALL,
    "role/obs": rows["roles"] == Role.OBS,
    "role/web": rows["roles"] == Role.WEB,
  }.items():
    assert losses[f"eval/loss/{name}"] == pytest.approx(expected[members].mean(), rel=1e-5)
  assert len(losses) == 5


@pytest.mark.parametrize("size", [1, 2, 4])
def test_losses_do_not_depend_on_how_rows_fall_into_batches(params: Any, rows: dict[str, np.ndarray], size: int):
  whole = heldout_losses(params, _batches(rows, ROWS), config=_config(ROWS), layout=Layout())
  split = heldout_losses(params, _batches(rows, size), config=_config(size), layout=Layout())
  assert split == pytest.approx(whole, rel=1e-6)


def test_losses_on_eight_devices_are_those_of_one(params: Any, rows: dict[str, np.ndarray]):
  layout = Layout(make_mesh(Mesh(data=2, fsdp=2, tensor=2)))
  placed = jax.tree.map(
    lambda leaf, names: jax.device_put(leaf, layout.sharding(*names)), params, transformer.logical_axes(_config(ROWS).model)
  )
  sharded = heldout_losses(placed, _batches(rows, ROWS), config=_config(ROWS), layout=layout)
  assert sharded == pytest.approx(heldout_losses(params, _batches(rows, ROWS), config=_config(ROWS), layout=Layout()), rel=1e-5)


def test_without_batches_there_are_no_losses(params: Any):
  assert heldout_losses(params, [], config=_config(ROWS), layout=Layout()) == {}
