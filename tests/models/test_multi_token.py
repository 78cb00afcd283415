from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxagent.config import Model
from maxagent.models import transformer
from maxagent.models.multi_token import ahead
from maxagent.parallel import Layout

DEPTHS, LENGTH = 2, 24
PLAIN = Model(
  vocab_size=64, hidden_size=32, mlp_size=48, heads=4, kv_heads=2, head_size=8, prefix=("global",), pattern=("local", "global"),
  repeats=2, suffix=("local",), window_tokens=6, compute_dtype="float32", attention_block_tokens=8,
)  # fmt: skip
DEEP = dataclasses.replace(PLAIN, mtp_depth=DEPTHS)
_init = jax.jit(transformer.init, static_argnums=0)


@functools.cache
def _params() -> Any:
  return _init(DEEP, jax.random.key(0))


def _tokens() -> jax.Array:
  return jax.random.randint(jax.random.key(1), (1, LENGTH), 0, 64)


@functools.partial(jax.jit, static_argnames="config")
def _states(
  params: Any, tokens_BT: jax.Array, segments_BT: Any = None, positions_BT: Any = None, config: Model = DEEP
) -> list[jax.Array]:
  """Of the next token, then of every depth."""
  seen = {
    "segments_BT": jnp.ones_like(tokens_BT) if segments_BT is None else segments_BT,
    "positions_BT": jnp.arange(tokens_BT.shape[1])[None] if positions_BT is None else positions_BT,
    "config": config,
    "layout": Layout(),
  }
  hidden_BTD = transformer.hidden_states(params, tokens_BT, **seen)
  return [hidden_BTD, *transformer.further_states(params, hidden_BTD, tokens_BT, **seen)]


@pytest.mark.parametrize("places", [0, 1, 3, 4])
def test_what_lies_ahead_of_the_last_places_is_nothing(places: int):
  assert ahead(jnp.asarray([[5, 6, 7]]), places)[0].tolist() == [*[5, 6, 7][places:], *[0] * min(places, 3)]


@pytest.mark.parametrize("at", [2, 9, 23])
def test_a_changed_token_changes_a_depth_from_that_many_places_before_it_on(at: int):
  for k, (a, b) in enumerate(zip(*(_states(_params(), x) for x in (_tokens(), _tokens().at[0, at].add(1) % 64)), strict=True)):
    np.testing.assert_array_equal(a[:, : at - k], b[:, : at - k])
    assert (a[:, at - k] != b[:, at - k]).any()


def test_packed_documents_have_the_states_of_documents_alone_wherever_a_target_lies_ahead():
  lengths, row = (5, 1, 11), _tokens()
  segments = jnp.array([[1] * 5 + [2] + [3] * 11 + [0] * 7])
  positions = jnp.array([[*range(5), 0, *range(11), *[0] * 7]])
  packed, start = _states(_params(), row, segments, positions), 0
  for length in lengths:
    alone = _states(_params(), row[:, start : start + length])
    for k, (ours, theirs) in enumerate(zip(packed, alone, strict=True)):
      np.testing.assert_allclose(ours[:, start : start + length - k], theirs[:, : length - k], atol=2e-5)
    start += length


def test_depths_are_parameters_of_their_own_and_change_no_other():
  plain, deep = _init(PLAIN, jax.random.key(0)), _params()
  assert set(deep) - set(plain) == {"mtp"} and list(deep["mtp"]) == ["0", "1"]
  rest, model = transformer.without_mtp(deep, DEEP)
  assert model == PLAIN
  jax.tree.map(np.testing.assert_array_equal, rest, plain)
  a, b = (deep["mtp"][k]["layer"]["mlp"]["up"] for k in "01")
  assert (a != b).any() and (a != deep["suffix"]["0"]["mlp"]["up"]).any()
  np.testing.assert_array_equal(_states(deep, _tokens())[0], _states(plain, _tokens(), config=PLAIN)[0])


def test_depths_are_described_by_their_axes_and_shapes():
  axes, shapes = transformer.logical_axes(DEEP), transformer.abstract(DEEP)
  names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
  assert jax.tree.structure(axes, is_leaf=lambda x: isinstance(x, tuple)) == jax.tree.structure(shapes)
  assert [len(name) for name in names] == [leaf.ndim for leaf in jax.tree.leaves(shapes)]
  assert shapes["mtp"]["0"]["projection"].shape == (64, 32)


def test_recomputing_a_depth_changes_no_gradient_and_does_attention_once():
  def size(params: Any, config: Model) -> jax.Array:
    return sum(jnp.sum(state**3) for state in _states(params, _tokens(), config=config))

  one = dataclasses.replace(DEEP, mtp_depth=1)
  gradients = [jax.grad(functools.partial(size, config=c)) for c in (one, dataclasses.replace(one, remat="none"))]
  params = _params() | {"mtp": {"0": _params()["mtp"]["0"]}}
  ours, theirs = (jax.jit(gradient)(params) for gradient in gradients)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max())), ours, theirs)
  # A loop over key tiles forward and one backward, for each of the four layers that are traced and for the depth.
  assert [str(jax.make_jaxpr(gradient)(params)).count(" while[") for gradient in gradients] == [10, 10]
