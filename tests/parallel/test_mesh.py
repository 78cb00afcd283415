import jax
import pytest

from maxagent.config.schema import Mesh, Model
from maxagent.errors import MeshError
from maxagent.parallel import AXES, check_model_fits, make_mesh
from maxagent.parallel.mesh import mesh_shape


def test_the_data_axis_takes_what_the_others_leave():
  assert mesh_shape(Mesh(fsdp=2, tensor=2), 8) == (2, 2, 1, 1, 2)


def test_the_mesh_has_all_named_axes_and_every_device_once():
  mesh = make_mesh(Mesh(fsdp=2, context=2))
  assert mesh.axis_names == AXES
  assert sorted(device.id for device in mesh.devices.flat) == sorted(device.id for device in jax.devices())


def test_a_part_of_the_devices_can_be_named():
  assert make_mesh(Mesh(), jax.devices()[:1]).devices.size == 1


def test_axes_that_do_not_divide_the_devices_are_named_with_their_product():
  with pytest.raises(MeshError, match=r"fsdp x expert x context x tensor = 3 x 1 x 1 x 2 = 6 does not divide the 8 devices"):
    mesh_shape(Mesh(fsdp=3, tensor=2), 8)


def test_a_product_that_is_not_the_device_count_is_named():
  with pytest.raises(MeshError, match=r"data x fsdp x expert x context x tensor = 2 x 1 x 1 x 1 x 2 = 4, but 8 devices"):
    mesh_shape(Mesh(data=2, tensor=2), 8)


@pytest.mark.parametrize(
  ("mesh", "sizes", "message"),
  [
    (Mesh(data=4, fsdp=2), {"batch": 4}, r"global_batch.*batch = 4 is not divisible by mesh.data x fsdp = 4 x 2 = 8"),
    (Mesh(context=8), {"length": 36}, r"sequence_tokens.*length = 36 is not divisible by mesh.context = 8"),
    (Mesh(tensor=4), {}, r"model.kv_heads.*kv_heads = 2 is not divisible by mesh.tensor = 4"),
  ],
)
def test_a_model_that_does_not_fit_names_the_field_and_the_product(mesh, sizes, message):
  with pytest.raises(MeshError, match=message):
    check_model_fits(make_mesh(mesh), Model(), **({"batch": 16, "length": 512} | sizes))


def test_a_model_that_fits_is_let_through():
  check_model_fits(make_mesh(Mesh(fsdp=2, context=2, tensor=2)), Model(), batch=16, length=512)
