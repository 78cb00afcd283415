"""Processes in lockstep: who is there, what process 0 said, and which rows of a batch are ours."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from maxagent.errors import MeshError
from maxagent.parallel.rules import Layout, require_divisible

T = TypeVar("T")


# Set by a launcher that starts one process on every host of a TPU slice: JAX then asks the cloud's own records who is there.
MULTIHOST = "MAXAGENT_MULTIHOST"


def process_count_of(environment: Mapping[str, str]) -> int:
  """How many processes the environment announces (1 when it says nothing)."""
  for name in ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
    if environment.get(name):
      return int(environment[name])
  hosts = [host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
  return max(1, len(hosts))


def initialize() -> None:
  """Joins the other processes, if the environment says that there are any; safe to call twice.

  A launcher of its own sets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; Slurm, Open MPI and TPU pods are
  recognised by their own variables; MAXAGENT_MULTIHOST=1 leaves the search to JAX.
  """
  announced = bool(os.environ.get(MULTIHOST)) or process_count_of(os.environ) > 1
  if jax.distributed.is_initialized() or not announced:
    return
  if "JAX_NUM_PROCESSES" not in os.environ:
    try:
      jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
      raise MeshError(f"other processes were announced, and JAX could not join them: {error} Check the launcher.") from error
    return
  missing = [name for name in ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID") if name not in os.environ]
  if missing:
    count = os.environ["JAX_NUM_PROCESSES"]
    raise MeshError(f"JAX_NUM_PROCESSES is {count}, but {' and '.join(missing)} is not set; set all three.")
  jax.distributed.initialize(
    os.environ["JAX_COORDINATOR_ADDRESS"], int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
  )


def is_first() -> bool:
  """Whether this process is the one that writes files and speaks."""
  return jax.process_index() == 0


def alone() -> bool:
  """Whether there is no other process to agree with."""
  return jax.process_count() == 1


def any_of(value: bool, layout: Layout) -> jax.Array:
  """bool [devices], a process's `value` at each of its devices: what a compiled step can ask all processes at once."""
  flags = np.array([value])
  if layout.mesh is None:
    return jax.device_put(flags)
  place = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec(layout.mesh.axis_names))
  if layout.mesh.devices.flat[0] not in jax.devices():  # only described, to compile for: such devices hold nothing
    return jax.ShapeDtypeStruct((layout.mesh.size,), flags.dtype, sharding=place)
  return jax.make_array_from_callback((layout.mesh.size,), place, lambda _: flags)


def gather_json(value: Any) -> list[Any]:
  """Every process's value, in order of process; values pass through JSON alike whether there is one process or many."""
  text = json.dumps(value).encode()
  if alone():
    return [json.loads(text)]
  lengths = multihost_utils.process_allgather(np.asarray(len(text), np.int32)).reshape(-1)
  padded = np.zeros(int(lengths.max()), np.uint8)
  padded[: len(text)] = np.frombuffer(text, np.uint8)
  rows = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
  return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def broadcast_json(value: Any) -> Any:
  """Process 0's value, on every process: how a control decision becomes a common one."""
  return gather_json(value if is_first() else None)[0]


def barrier(name: str) -> None:
  """Returns once every process has called it with this name."""
  if not alone():
    multihost_utils.sync_global_devices(name)


def local_rows(layout: Layout, global_batch: int) -> list[int]:
  """The rows of a global batch that this process's devices hold, ascending; hosts that share a row both list it."""
  sharding = layout.sharding("batch")
  if sharding is None:
    return list(range(global_batch))
  require_divisible(layout, global_batch, "batch", what="data.global_batch does not fit the mesh")
  held: set[int] = set()
  for (rows,) in sharding.addressable_devices_indices_map((global_batch,)).values():
    held.update(range(global_batch)[rows])
  return sorted(held)


def to_global(batch: T, layout: Layout, *, global_batch: int | None = None) -> T:
  """The dataclass `batch` of [local rows, T] arrays as [global_batch, T] arrays on the mesh.

  `global_batch` may be left out when every process holds the same number of rows. A process gives whole rows; its devices take
  their own part of the length.
  """
  arrays = {field.name: np.asarray(getattr(batch, field.name)) for field in dataclasses.fields(batch)}  # type: ignore[arg-type]
  sharding = layout.sharding("batch", "length")
  if sharding is None:
    return dataclasses.replace(batch, **{name: jax.device_put(array) for name, array in arrays.items()})  # type: ignore[type-var]
  held = len(next(iter(arrays.values())))
  total = global_batch or _global_rows(layout, held)
  place = {row: i for i, row in enumerate(local_rows(layout, total))}
  if len(place) != held:
    raise MeshError(f"this process holds {len(place)} rows of a global batch of {total} on this mesh, but was given {held}.")

  def put(array: np.ndarray) -> jax.Array:
    # Not make_array_from_process_local_data: it takes neighbouring local rows for neighbours in the batch, which a mesh that
    # follows a pod's wiring does not promise.
    def shard(index: tuple[slice, ...]) -> np.ndarray:
      rows = [place[row] for row in range(total)[index[0]]]
      return array[rows[0] : rows[-1] + 1, index[1]]

    return jax.make_array_from_callback((total, *array.shape[1:]), sharding, shard)

  return dataclasses.replace(batch, **{name: put(array) for name, array in arrays.items()})  # type: ignore[type-var]


def _global_rows(layout: Layout, held: int) -> int:
  """Rows of the global batch when this process holds `held` of them: the batch axis has `parts` parts, some of them here."""
  parts = layout.parts("batch")
  return held * parts // len(local_rows(layout, parts))
