import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxagent.config.schema import Mesh, Model
from maxagent.models import transformer
from maxagent.parallel import Layout, make_mesh

SMALL = Model(
  vocab_size=64, hidden_size=32, mlp_size=48, heads=4, kv_heads=2, head_size=8, prefix=("global",), pattern=("local", "global"),
  repeats=2, suffix=("local",), window_tokens=6, compute_dtype="float32", attention_block_tokens=8,
)  # fmt: skip
ALONE = Layout()


@functools.lru_cache
def params_of(config: Model = SMALL):
  return jax.jit(functools.partial(transformer.init, config))(jax.random.key(0))


def tokens(batch: int = 4, length: int = 24):
  return jax.random.randint(jax.random.key(1), (batch, length), 0, 64)


@functools.partial(jax.jit, static_argnames=("config", "layout"))
def run(params, tokens_BT, segments_BT=None, positions_BT=None, *, config=SMALL, layout=ALONE):
  if segments_BT is None:
    segments_BT = jnp.ones_like(tokens_BT)
  if positions_BT is None:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
  return transformer.hidden_states(
    params, tokens_BT, segments_BT=segments_BT, positions_BT=positions_BT, config=config, layout=layout
  )


def loss(params, tokens_BT, **kwargs):
  hidden = run(params, tokens_BT, **kwargs).astype(jnp.float32)
  logits = jnp.einsum("BTD,DV->BTV", hidden, transformer.head(params, kwargs.get("config", SMALL)))
  return jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, (tokens_BT[..., None] * 7 + 3) % 64, -1)[..., 0])


def same_trees(a, b, tolerance):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    scale = max(1e-6, float(jnp.abs(y).max()))
    np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=tolerance * scale)


@pytest.mark.parametrize("at", [1, 9, 23])
def test_a_changed_token_changes_nothing_before_it_and_something_from_it_on(at):
  before, after = tokens(1), tokens(1).at[0, at].add(1) % 64
  a, b = run(params_of(), before), run(params_of(), after)
  np.testing.assert_array_equal(a[:, :at], b[:, :at])
  assert (a[:, at] != b[:, at]).any()


def test_packed_documents_equal_documents_alone():
  lengths = (5, 1, 11)
  row = tokens(1)
  segments = jnp.array([[1] * 5 + [2] + [3] * 11 + [0] * 7])
  positions = jnp.array([[*range(5), 0, *range(11), *[0] * 7]])
  packed = run(params_of(), row, segments, positions)
  start = 0
  for length in lengths:
    alone = run(params_of(), row[:, start : start + length])
    np.testing.assert_allclose(packed[:, start : start + length], alone, atol=2e-5)
    start += length


def test_a_local_layer_forgets_what_lies_outside_its_window():
  config = dataclasses.replace(SMALL, prefix=(), pattern=("local",), repeats=2, suffix=())
  a, b = (run(params_of(config), x, config=config) for x in (tokens(1), tokens(1).at[0, 0].add(1) % 64))
  reach = 2 * (config.window_tokens - 1)
  assert (a[:, reach] != b[:, reach]).any()
  np.testing.assert_array_equal(a[:, reach + 1 :], b[:, reach + 1 :])


def test_a_global_layer_knows_no_positions_and_a_local_one_only_distances():
  shifted = 100 + jnp.arange(24)[None]
  np.testing.assert_allclose(run(params_of(), tokens(1)), run(params_of(), tokens(1), positions_BT=shifted), atol=1e-4)
  config = dataclasses.replace(SMALL, prefix=(), pattern=("global",), repeats=1, suffix=())
  stretched = 3 * jnp.arange(24)[None]
  alike = [run(params_of(config), tokens(1), positions_BT=p, config=config) for p in (None, stretched)]
  np.testing.assert_array_equal(alike[0], alike[1])
  turned = dataclasses.replace(config, global_rope=True)
  differ = [run(params_of(config), tokens(1), positions_BT=p, config=turned) for p in (None, stretched)]
  assert np.abs(differ[0] - differ[1]).max() > 1e-3


def test_scanned_layers_equal_the_same_layers_written_out():
  flat = dataclasses.replace(SMALL, prefix=SMALL.layers, pattern=("local",), repeats=0, suffix=())
  both = params_of(SMALL), params_of(flat)
  assert set(both[1]) == {"embedding", "prefix", "final_norm"}
  for scanned, written in [("1", ("0", 0)), ("2", ("1", 0)), ("3", ("0", 1)), ("4", ("1", 1))]:
    layer = jax.tree.map(lambda leaf, repeat=written[1]: leaf[repeat], both[0]["pattern"][written[0]])
    same_trees(layer, both[1]["prefix"][scanned], 0)
  np.testing.assert_allclose(loss(both[0], tokens()), loss(both[1], tokens(), config=flat), rtol=1e-6)


def test_recomputing_blocks_changes_no_gradient():
  none = dataclasses.replace(SMALL, remat="none")
  a, b = (jax.jit(jax.grad(functools.partial(loss, config=config)))(params_of(), tokens()) for config in (SMALL, none))
  same_trees(a, b, 1e-5)


def test_attention_is_not_computed_a_second_time_in_the_backward_pass():
  def visits(config):
    return str(jax.make_jaxpr(jax.grad(functools.partial(loss, config=config)))(params_of(), tokens())).count(" while[")

  # A loop over key tiles forward and one backward, for each of the four layers that are traced.
  assert visits(SMALL) == visits(dataclasses.replace(SMALL, remat="none")) == 8


MESHES = [
  Mesh(data=8), Mesh(data=2, fsdp=2, tensor=2), Mesh(fsdp=2, context=2, tensor=2), Mesh(data=1, context=8), Mesh(data=1, fsdp=8)
]  # fmt: skip


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_gives_the_loss_and_the_gradients_of_one_device(mesh):
  layout = Layout(make_mesh(mesh))
  shardings = jax.tree.map(
    lambda names: layout.sharding(*names), transformer.logical_axes(SMALL), is_leaf=lambda x: isinstance(x, tuple)
  )
  batch = tokens(8)
  one = jax.jit(jax.value_and_grad(loss))(params_of(), batch)
  params = jax.device_put(params_of(), shardings)
  rows = jax.device_put(batch, layout.sharding("batch", "length"))
  many = jax.jit(jax.value_and_grad(functools.partial(loss, layout=layout)))(params, rows)
  np.testing.assert_allclose(many[0], one[0], rtol=1e-5)
  same_trees(many[1], one[1], 1e-4)


@pytest.mark.parametrize("mesh", [Mesh(data=8), Mesh(fsdp=2, context=2, tensor=2), Mesh(data=1, tensor=2, fsdp=4)])
def test_first_values_do_not_depend_on_the_mesh(mesh):
  layout = Layout(make_mesh(mesh))
  shardings = jax.tree.map(
    lambda names: layout.sharding(*names), transformer.logical_axes(SMALL), is_leaf=lambda x: isinstance(x, tuple)
  )
  born = jax.jit(functools.partial(transformer.init, SMALL), out_shardings=shardings)(jax.random.key(0))
  same_trees(born, params_of(), 1e-6)


def test_parameters_are_plain_and_described_by_their_axes_and_shapes():
  params, axes, shapes = params_of(), transformer.logical_axes(SMALL), transformer.abstract(SMALL)
  names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
  assert jax.tree.structure(axes, is_leaf=lambda x: isinstance(x, tuple)) == jax.tree.structure(params)
  assert [len(name) for name in names] == [leaf.ndim for leaf in jax.tree.leaves(params)]
  assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
  layer = params["pattern"]["1"]
  assert {type(params), type(layer), type(layer["attention"])} == {dict}
  assert layer["attention"]["query"].shape == (2, 32, 4, 8) and layer["attention"]["out"].shape == (2, 4, 8, 32)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_first_values_have_the_sizes_they_should():
  config = Model(vocab_size=512, hidden_size=128, mlp_size=256, init_scale=0.05, tied_embeddings=False)
  params = params_of(config)
  layer = params["pattern"]["2"]
  assert np.std(params["embedding"]["table"]) == pytest.approx(0.05, rel=0.02)
  assert np.std(params["embedding"]["head"]) == pytest.approx(128**-0.5, rel=0.02)
  assert np.std(layer["mlp"]["gate"]) == pytest.approx(128**-0.5, rel=0.02)
  assert np.std(layer["mlp"]["down"]) == pytest.approx((256 * 2 * 4) ** -0.5, rel=0.02)
  assert np.std(layer["attention"]["out"]) == pytest.approx((128 * 2 * 4) ** -0.5, rel=0.02)


def test_copy_init_makes_a_head_begin_by_copying():
  config = dataclasses.replace(SMALL, copy_init=True)
  attention, usual = (params_of(c)["pattern"]["1"]["attention"] for c in (config, SMALL))
  for query_head, kv_head in enumerate((0, 0, 1, 1)):  # 4 query heads on 2 key/value heads
    through = jnp.einsum("RDH,RHE->RDE", attention["value"][:, :, kv_head], attention["out"][:, query_head])
    np.testing.assert_allclose(through, through.swapaxes(1, 2), atol=1e-6)
    assert (jnp.linalg.eigvalsh(through) > -1e-6).all()
  np.testing.assert_array_equal(attention["value"], usual["value"])
  assert jax.tree.map(jnp.shape, attention) == jax.tree.map(jnp.shape, usual)


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not():
  np.testing.assert_array_equal(transformer.head(params_of(), SMALL), params_of()["embedding"]["table"].T)
  untied = dataclasses.replace(SMALL, tied_embeddings=False)
  assert transformer.head(params_of(untied), untied) is params_of(untied)["embedding"]["head"]


def test_hidden_states_come_in_the_compute_dtype_and_padding_is_finite():
  config = dataclasses.replace(SMALL, compute_dtype="bfloat16")
  hidden = run(params_of(), tokens(), jnp.zeros((4, 24), jnp.int32), config=config)
  assert hidden.dtype == jnp.bfloat16 and jnp.isfinite(hidden).all()
  gradients = jax.jit(jax.grad(functools.partial(loss, config=config)))(params_of(), tokens())
  assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradients))
