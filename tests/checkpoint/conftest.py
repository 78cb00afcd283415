"""A small training state of every kind of leaf, on any mesh."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


class Moments(NamedTuple):
  mean: Any
  square: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  params: Any
  moments: tuple[Moments, ...]
  step: Any


MESHES = {"8x1": (8, 1), "4x2": (4, 2), "2x2x2": (2, 2, 2), "1": (1,)}


def mesh_of(name: str) -> jax.sharding.Mesh:
  shape = MESHES[name]
  devices = jax.devices()[: int(np.prod(shape))]
  return jax.make_mesh(shape, ("a", "b", "c")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def spec_of(mesh: jax.sharding.Mesh, shape: tuple[int, ...]) -> P:
  """Cuts every axis that divides, the last axis first, so that shard edges fall inside rows."""
  free = list(mesh.axis_names)
  axes: list[str | None] = [None] * len(shape)
  for axis in reversed(range(len(shape))):
    fitting = next((name for name in free if shape[axis] % mesh.shape[name] == 0 and shape[axis]), None)
    if fitting:
      free.remove(fitting)
      axes[axis] = fitting
  return P(*axes)


def place(tree: Any, mesh: str) -> Any:
  on = mesh_of(mesh)
  return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(on, spec_of(on, np.shape(x)))), tree)


def host_state(seed: int = 0, width: int = 48) -> State:
  random = np.random.default_rng(seed)
  table = random.standard_normal((64, width)).astype(np.float32)
  table[0, :6] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, np.float32(3e38)]
  params = {
    "embed": {"table": table},
    "layers": {"w": random.standard_normal((3, 16, 2, 40)).astype(ml_dtypes.bfloat16), "scale": np.ones(width, np.float32)},
    "mask": random.random((8, 24)) > 0.5,
    "codes": random.integers(-128, 128, (8, 1000), dtype=np.int8),
  }
  moments = (Moments(table[::-1].copy(), np.abs(table)),)
  return State(params=params, moments=moments, step=np.asarray(seed, np.int32))


def abstract_of(state: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def same_bits(left: Any, right: Any) -> bool:
  pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
  return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() and a.dtype == b.dtype and a.shape == b.shape for a, b in pairs)


@dataclasses.dataclass(frozen=True)
class Kit:
  """The functions above, for tests."""

  host_state: Callable[..., State] = host_state
  place: Callable[[Any, str], Any] = place
  abstract_of: Callable[[Any], Any] = abstract_of
  same_bits: Callable[[Any, Any], bool] = same_bits
  mesh_of: Callable[[str], jax.sharding.Mesh] = mesh_of
  spec_of: Callable[..., P] = spec_of

  def save(self, checkpoints: Any, step: int, state: Any, **given: Any) -> None:
    """Saves with small items and waits."""
    items = {"data_state": {"position": step}, "config_json": '{"seed": 1}', "metadata": {"tokens": step * 10}} | given
    checkpoints.save(step, state, **items)
    checkpoints.wait()


@pytest.fixture
def kit() -> Kit:
  return Kit()


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
  return tmp_path / "checkpoints"
