import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxagent.config.schema import Mesh, Model
from maxagent.models import transformer
from maxagent.models.cache import cache_axes, init_cache
from maxagent.parallel import Layout, make_mesh

CONFIG = Model(
  vocab_size=64, hidden_size=32, mlp_size=48, heads=4, kv_heads=2, head_size=8, prefix=("local",), pattern=("local", "global"),
  repeats=2, suffix=("global",), window_tokens=6, compute_dtype="float32", attention_block_tokens=8,
)  # fmt: skip
ALONE = Layout()
TOKENS = jax.random.randint(jax.random.key(1), (4, 90), 0, 64)


@functools.lru_cache
def params():
  return jax.jit(functools.partial(transformer.init, CONFIG))(jax.random.key(0))


@functools.lru_cache
def expected():
  positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1])[None], TOKENS.shape)
  whole = functools.partial(transformer.hidden_states, config=CONFIG, layout=Layout())
  return jax.jit(whole)(params(), TOKENS, segments_BT=jnp.ones_like(TOKENS), positions_BT=positions)


@functools.partial(jax.jit, static_argnames="layout")
def traced(params, cache, tokens, positions, valid, *, layout):
  return transformer.extend(params, cache, tokens, positions, valid, config=CONFIG, layout=layout)


def extend(*arguments, layout=ALONE):
  return traced(params(), *arguments, layout=layout)


def fed(cache, starts, counts, width):
  """Feeds each row `counts` of its tokens from `starts` on, in one call `width` wide; the unused places hold rubbish."""
  places = starts[:, None] + np.arange(width)[None]
  valid = np.arange(width)[None] < counts[:, None]
  tokens = np.where(valid, np.take_along_axis(np.asarray(TOKENS), np.minimum(places, 89), 1), 63)
  hidden, cache = extend(cache, jnp.array(tokens), jnp.array(places), jnp.array(valid))
  return np.asarray(hidden), cache


def test_one_token_at_a_time_equals_the_whole_sequence():
  cache = init_cache(CONFIG, 4, 90)
  for place in range(40):
    hidden, cache = fed(cache, np.full(4, place), np.ones(4, int), 1)
    np.testing.assert_allclose(hidden[:, 0], expected()[:, place], atol=1e-5)


def test_a_long_prompt_in_one_call_equals_the_whole_sequence():
  hidden, _ = fed(init_cache(CONFIG, 4, 96), np.zeros(4, int), np.full(4, 90), 90)
  np.testing.assert_allclose(hidden, expected(), atol=1e-5)


def test_uneven_chunks_at_their_own_places_equal_the_whole_sequence():
  cache, starts, rng = init_cache(CONFIG, 4, 90), np.zeros(4, int), np.random.default_rng(0)
  while (starts < 90).any():
    counts = np.minimum(rng.integers(0, 12, 4), 90 - starts)
    hidden, cache = fed(cache, starts, counts, 12)
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
      np.testing.assert_allclose(hidden[row, :count], expected()[row, start : start + count], atol=1e-5)
    starts += counts


def test_an_invalid_token_writes_nothing():
  _, cache = fed(init_cache(CONFIG, 4, 90), np.zeros(4, int), np.full(4, 8), 8)
  _, after = fed(cache, np.full(4, 3), np.zeros(4, int), 8)
  jax.tree.map(np.testing.assert_array_equal, after, cache)
  _, beyond = extend(cache, TOKENS[:, :2], jnp.full((4, 2), 90), jnp.ones((4, 2), bool))
  jax.tree.map(np.testing.assert_array_equal, beyond, cache)


def test_a_slot_is_emptied_by_starting_again_at_position_0():
  _, cache = fed(init_cache(CONFIG, 4, 90), np.zeros(4, int), np.full(4, 60), 60)
  hidden, _ = fed(cache, np.zeros(4, int), np.full(4, 12), 12)
  np.testing.assert_allclose(hidden, expected()[:, :12], atol=1e-5)


def test_the_cache_is_described_by_its_axes():
  cache, axes = init_cache(CONFIG, 4, 90, jnp.bfloat16), cache_axes(CONFIG)
  assert cache["pattern"]["1"]["key"].shape == (2, 4, 2, 90, 8) and cache["prefix"]["0"]["value"].dtype == jnp.bfloat16
  assert axes["pattern"]["1"]["key"] == ("layers", "batch", "kv_heads", None, "head")
  assert jax.tree.structure(axes, is_leaf=lambda x: isinstance(x, tuple)) == jax.tree.structure(cache)


@pytest.mark.parametrize("mesh", [Mesh(data=4, tensor=2), Mesh(data=2, context=2, tensor=2)])
def test_a_mesh_decodes_the_same(mesh):
  layout = Layout(make_mesh(mesh))
  place = functools.partial(jax.tree.map, lambda leaf, names: jax.device_put(leaf, layout.sharding(*names)))
  cache = place(init_cache(CONFIG, 4, 90), cache_axes(CONFIG))
  positions = jnp.broadcast_to(jnp.arange(20)[None], (4, 20))
  hidden, _ = extend(cache, TOKENS[:, :20], positions, jnp.ones((4, 20), bool), layout=layout)
  np.testing.assert_allclose(hidden, expected()[:, :20], atol=1e-5)
