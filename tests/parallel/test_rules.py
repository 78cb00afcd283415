import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from maxagent.config.schema import Mesh
from maxagent.errors import MeshError
from maxagent.parallel import AXES, RULES, Layout, make_mesh, spec


def test_every_rule_names_axes_of_the_mesh():
  assert {axis for axes in RULES.values() for axis in axes} <= set(AXES)


def test_logical_names_become_mesh_axes():
  assert spec("batch", "length", None) == PartitionSpec(("data", "fsdp"), "context", None)
  assert spec("layers", "embed", "heads", "head") == PartitionSpec(None, "fsdp", "tensor", None)


def test_an_unknown_logical_name_lists_the_known_ones():
  with pytest.raises(MeshError, match=r"'hedas' is not in the table; known are batch, length"):
    spec("hedas")


def test_without_a_mesh_nothing_is_constrained():
  x = jnp.ones((3, 5))
  assert Layout().constrain(x, "batch", "length") is x
  assert Layout().sharding("batch") is None


def test_a_constrained_array_lies_where_the_table_says():
  layout = Layout(make_mesh(Mesh(data=2, fsdp=2, tensor=2)))
  x = jax.jit(lambda x: layout.constrain(x, "batch", "mlp"))(jnp.ones((8, 4)))
  assert x.sharding.is_equivalent_to(layout.sharding("batch", "mlp"), 2)
  assert x.sharding.shard_shape(x.shape) == (2, 2)


def test_a_size_that_cannot_be_cut_is_an_error_of_ours():
  layout = Layout(make_mesh(Mesh(data=8)))
  with pytest.raises(MeshError, match=r"shape \(6, 4\): batch = 6 is not divisible by mesh.data x fsdp = 8 x 1 = 8"):
    jax.eval_shape(lambda x: layout.constrain(x, "batch", None), jnp.ones((6, 4)))


def test_a_layout_is_a_key():
  assert hash(Layout(make_mesh(Mesh()))) == hash(Layout(make_mesh(Mesh())))
  assert Layout(make_mesh(Mesh())) == Layout(make_mesh(Mesh()))
