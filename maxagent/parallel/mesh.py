"""The named mesh: devices along (data, fsdp, expert, context, tensor)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
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
  """The mesh over `devices` (default: all devices of all processes), with Auto axes."""
  devices = jax.devices() if devices is None else list(devices)
  shape = mesh_shape(config, len(devices))
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
