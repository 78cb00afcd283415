"""The named mesh: devices along (data, fsdp, expert, context, tensor)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from maxagent.config.schema import Mesh as MeshConfig
from maxagent.errors import MeshError

# Slowest first: tensor neighbours talk most, so they lie next to one another.
AXES = ("data", "fsdp", "expert", "context", "tensor")


def mesh_shape(config: MeshConfig, device_count: int) -> tuple[int, ...]:
  """Sizes of `AXES` for that many devices; raises MeshError with the product that does not fit."""
  fixed = {axis: getattr(config, axis) for axis in AXES if getattr(config, axis) is not None}
  product = math.prod(fixed.values())
  named = f"{' x '.join(fixed)} = {' x '.join(str(size) for size in fixed.values())} = {product}"
  if config.data is None:
    if device_count % product:
      raise MeshError(
        f"mesh.{named} does not divide the {device_count} devices that were found; choose sizes whose product is a divisor of "
        f"{device_count} (mesh.data takes the rest)."
      )
    return (device_count // product, *fixed.values())
  if product != device_count:
    raise MeshError(
      f"mesh.{named}, but {device_count} devices were found; make the product {device_count}, or leave mesh.data unset (None), "
      "and it takes what the other axes leave."
    )
  return tuple(fixed.values())


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """The mesh over `devices` (default: all devices of all processes), with Auto axes.

  Raises:
    MeshError: the axes do not fit the devices, or another axis than `data` would lie across TPU slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  shape, types = mesh_shape(config, len(devices)), (AxisType.Auto,) * len(AXES)
  if devices[0].platform != "tpu":
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
  return jax.sharding.Mesh(_on_torus(shape, devices), AXES, axis_types=types)


def _on_torus(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
  """TPUs in the order of the mesh: axes along whole dimensions of the torus, or along parts of one where that cannot be."""
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  if shape[0] % slices:
    raise MeshError(
      f"mesh.data = {shape[0]} on {slices} slices: only the data axis may cross the slow network between slices; make it a "
      f"multiple of {slices}."
    )
  inside, across = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
  return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=True)
