"""Reads checkpoints and says whether they are whole: nothing is answered that its digests do not prove.

Damage (DamagedCheckpointError) is anything on disk that is not what was saved. A checkpoint of another model is whole, so it
is a plain CheckpointError. With several processes every function here is called by all of them, and all get the same answer.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from maxagent.checkpoint import digest
from maxagent.checkpoint.index import files_of, stored_name
from maxagent.checkpoint.naming import Named, like, named_leaves
from maxagent.errors import CheckpointError, DamagedCheckpointError
from maxagent.parallel.processes import broadcast_json, gather_json

QUARANTINE = "damaged"  # subfolder for steps that failed their check
_JSON_ITEMS = ("data", "config", "metadata")
_NAMED_IN_MESSAGES = 3  # arrays listed before "and N more"
_READ_AHEAD_BYTES = 1 << 30  # hides the latency of a network disk; more only fills the host's memory


@dataclasses.dataclass(frozen=True, slots=True)
class Restored:
  """A checkpoint whose every array and item matched its digest."""

  step: int
  state: Any  # built as the abstract state was
  data_state: dict[str, Any]
  config_json: str  # equal to the saved one as JSON, not in white space
  metadata: dict[str, Any]
  skipped: tuple[tuple[int, str], ...] = ()  # newer steps that were not good, newest first, and why


@dataclasses.dataclass(frozen=True, slots=True)
class Verified:
  """What `verify` found of one step."""

  step: int
  good: bool
  reason: str  # empty when good


@dataclasses.dataclass(frozen=True, slots=True)
class ArrayRecord:
  """One array as it was saved; `sum` is its digest."""

  shape: tuple[int, ...]
  dtype: str
  sum: int

  def __str__(self) -> str:
    return f"{self.dtype}{list(self.shape)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
  """All that a checkpoint says of itself, the parts of all processes added up."""

  arrays: dict[str, ArrayRecord]
  items: dict[str, str]
  processes: int  # that saved it


def saved_steps(folder: str | pathlib.Path) -> list[int]:
  """Steps that lie in the folder, ascending, good or not; unfinished saves and quarantined steps are not among them."""
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch(r"0|[1-9]\d*", path.name) and path.is_dir())


def restore_step(folder: pathlib.Path, step: int, abstract_state: Any, *, subtree: str = "") -> Restored:
  """One step, checked; leaves of `abstract_state` are ShapeDtypeStructs whose sharding says where each array goes.

  With `subtree` "params", `abstract_state` describes only what the saved state holds under that name.
  """
  report: dict[str, Any] = {}
  wanted = {_join(subtree, name): leaf for name, leaf in named_leaves(abstract_state).items()}
  try:
    record = read_record(folder / str(step), step)
    items = _read_items(folder / str(step), record)
    _require_fit(record, wanted, where=f"step {step} in {folder}", whole=not subtree)
    arrays = _read_arrays(folder / str(step), wanted)
    report = {"sums": digest.start(arrays)()}
  except CheckpointError as error:
    report = {"error": str(error), "damaged": isinstance(error, DamagedCheckpointError)}
  reports = gather_json(report)
  for other in reports:
    if "error" in other:
      raise (DamagedCheckpointError if other["damaged"] else CheckpointError)(other["error"])
  for name in wanted:
    _require_digest(folder / str(step), name, record.arrays[name].sum, sum(other["sums"][name] for other in reports) % 2**64)
  state = like(abstract_state, {name.removeprefix(_join(subtree, "")): array for name, array in arrays.items()})
  config_json = json.dumps(items["config"], indent=2)
  return Restored(step=step, state=state, data_state=items["data"], config_json=config_json, metadata=items["metadata"])


def locate(path: str | pathlib.Path) -> tuple[pathlib.Path, int | None]:
  """The checkpoints folder, and the step if one is meant, of a run's workdir, its checkpoints folder, or one step in that."""
  path = pathlib.Path(path)
  if path.name.isdigit() and saved_steps(path.parent):
    return path.parent, int(path.name)
  return (path / "checkpoints" if (path / "checkpoints").is_dir() else path), None


def restore_params(
  folder: str | pathlib.Path, abstract_params: Any, step: int | None = None, *, subtree: str = "params"
) -> Restored:
  """Weights alone, for a new run that starts from them: `.state` is built as `abstract_params` is.

  Reads `step`, or the latest good one; `folder` belongs to another run, so a damaged step is passed over and left
  where it lies.
  """
  folder = pathlib.Path(folder)
  steps = broadcast_json(saved_steps(folder))
  if step is not None and step not in steps:
    raise CheckpointError(f"{folder} holds no checkpoint of step {step}; it holds {steps or 'none'}.")
  if not steps:
    raise CheckpointError(f"{folder} holds no checkpoint; expected the checkpoints folder of a run that has saved one.")
  skipped: list[tuple[int, str]] = []
  for candidate in [step] if step is not None else reversed(steps):
    try:
      restored = restore_step(folder, candidate, abstract_params, subtree=subtree)
      return dataclasses.replace(restored, skipped=tuple(skipped))
    except DamagedCheckpointError as error:
      skipped.append((candidate, str(error)))
  if step is not None:
    raise DamagedCheckpointError(f"step {step} in {folder} is not whole: {skipped[0][1]} Name another of {steps}.")
  raise DamagedCheckpointError(none_good(folder, skipped))


def verify(
  folder: str | pathlib.Path, step: int | None = None, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Verified]:
  """Reads `step`, or every step of a folder, ascending, one array in memory at a time; changes nothing. For one process.

  `progress` is told the bytes of arrays that are done, and of all.
  """
  folder = pathlib.Path(folder)
  steps = saved_steps(folder)
  if step is not None and step not in steps:
    raise CheckpointError(f"{folder} holds no checkpoint of step {step}; it holds {steps or 'none'}.")
  steps = steps if step is None else [step]
  reasons: dict[int, str] = {}
  records: dict[int, Record] = {}
  for one in steps:
    try:
      records[one] = read_record(folder / str(one), one)
    except CheckpointError as error:
      reasons[one] = str(error)
  done, total = 0, sum(_bytes_of(saved) for record in records.values() for saved in record.arrays.values())
  for one, record in records.items():
    try:
      _read_items(folder / str(one), record)
      for name, saved in record.arrays.items():
        progress(done, total)
        _verify_array(folder / str(one), name, saved)
        done += _bytes_of(saved)
    except CheckpointError as error:
      reasons[one] = str(error)
  progress(done, total)
  there = [one for one in steps if (folder / str(one)).is_dir()]  # a run that goes on may have let go of its oldest
  return [Verified(step=one, good=one not in reasons, reason=reasons.get(one, "")) for one in there]


def describe(step_folder: pathlib.Path, step: int) -> tuple[int | None, int]:
  """Tokens seen by then (None if the run did not say) and processes that saved it; raises if a small file is damaged."""
  record = read_record(step_folder, step)
  return _read_items(step_folder, record)["metadata"].get("tokens"), record.processes


def none_good(folder: pathlib.Path, skipped: list[tuple[int, str]]) -> str:
  """The message when a folder holds checkpoints but none that is whole."""
  reasons = "\n".join(f"  step {step}: {reason}" for step, reason in skipped)
  return (
    f"no checkpoint in {folder} is whole:\n{reasons}\nBring back a copy of one, or start anew by moving the folder away; "
    "nothing was deleted."
  )


def quarantine(folder: pathlib.Path, step: int, reason: str) -> pathlib.Path:
  """Moves a damaged step to `damaged/STEP`, the reason beside it, so that it is never answered again; nothing is deleted."""
  target = folder / QUARANTINE / str(step)
  copies = 1
  while target.exists():
    copies += 1
    target = folder / QUARANTINE / f"{step}-{copies}"
  target.parent.mkdir(exist_ok=True)
  (folder / str(step)).rename(target)
  target.with_name(target.name + ".txt").write_text(reason + "\n")
  return target


def read_record(step_folder: pathlib.Path, step: int) -> Record:
  """The digests saved with a step; damaged if a part is missing, changed or of another step."""
  folder = step_folder / "digests"
  parts = [_read_part(path) for path in sorted(folder.glob("part-*.json"))]
  if not parts:
    raise DamagedCheckpointError(f"{folder} holds no digests; the checkpoint cannot be proven whole.")
  processes = parts[0]["processes"]
  if [part["process"] for part in parts] != list(range(processes)):
    raise DamagedCheckpointError(f"{folder} holds digests of {len(parts)} processes; {processes} saved this step.")
  if any(part["step"] != step for part in parts):
    raise DamagedCheckpointError(f"{folder} says it belongs to step {parts[0]['step']}; it lies in the folder of step {step}.")
  arrays = {
    name: ArrayRecord(
      shape=tuple(entry["shape"]), dtype=entry["dtype"], sum=sum(part["arrays"][name]["sum"] for part in parts) % 2**64
    )
    for name, entry in parts[0]["arrays"].items()
  }
  return Record(arrays=arrays, items=parts[0]["items"], processes=processes)


def _read_part(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_bytes())
    record, expected = content["record"], content["digest"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DamagedCheckpointError(f"{path} cannot be read: {_brief(error)}") from error
  if digest.json_digest(record) != expected:
    raise DamagedCheckpointError(f"{path} does not match its own digest.")
  if record["format_version"] != 1:
    raise CheckpointError(
      f"{path} has format {record['format_version']}; this maxagent reads 1. Use the release that wrote it."
    )
  return record


def _read_items(step_folder: pathlib.Path, record: Record) -> dict[str, Any]:
  items = {}
  for name in _JSON_ITEMS:
    path = step_folder / name / "metadata"  # the file name of Orbax's JSON handler
    try:
      items[name] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
      raise DamagedCheckpointError(f"{path} cannot be read: {_brief(error)}") from error
    if digest.json_digest(items[name]) != record.items.get(name):
      raise DamagedCheckpointError(f"{path} does not match its digest.")
  return items


def _require_fit(record: Record, wanted: Named, *, where: str, whole: bool) -> None:
  """Raises unless the saved arrays are the wanted ones; `whole` also forbids saved arrays that nobody wants."""
  expected = {name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for name, leaf in wanted.items()}
  saved = {name: str(array) for name, array in record.arrays.items() if whole or name in expected}
  differing = [
    f"{name}: saved {saved.get(name, 'nothing')}, wanted {expected.get(name, 'nothing')}"
    for name in sorted(saved.keys() | expected.keys())
    if saved.get(name) != expected.get(name)
  ]
  if differing:
    more = f"\n  and {len(differing) - _NAMED_IN_MESSAGES} more" if len(differing) > _NAMED_IN_MESSAGES else ""
    raise CheckpointError(
      f"{where} is of another model or optimizer:\n  "
      + "\n  ".join(differing[:_NAMED_IN_MESSAGES])
      + more
      + "\nUse the configuration it was saved with, or another workdir."
    )


def _read_arrays(step_folder: pathlib.Path, wanted: Named) -> dict[str, jax.Array]:
  """The wanted arrays from disk, not yet checked against their digests; this process reads what its devices hold.

  TensorStore reads what Orbax wrote. Orbax's own restore was left out because it abandons its other reads when one fails, which
  prints pages of "exception ignored" over the message that matters; and importing it costs half a second.
  """
  arrays: dict[str, jax.Array] = {}
  reading: collections.deque[_Reading] = collections.deque()
  try:
    for name, leaf in wanted.items():
      reading.append(_Reading(step_folder / "state", name, leaf))
      while sum(one.nbytes for one in reading) > _READ_AHEAD_BYTES:
        arrays.update(reading.popleft().result())
    for one in reading:
      arrays.update(one.result())
  finally:
    for one in reading:
      one.drop()
  return arrays


class _Reading:
  """One array on its way from disk to its devices."""

  def __init__(self, folder: pathlib.Path, name: str, leaf: Any) -> None:
    self._folder, self._name, self._leaf = folder, name, leaf
    self._sharding = leaf.sharding or _here()
    self._parts: dict[tuple[tuple[int, int], ...], Any] = {}
    try:
      store = _open(folder, name).result()
      if store.shape != tuple(leaf.shape) or store.dtype.numpy_dtype != leaf.dtype:
        raise ValueError(f"it is {store.dtype.name}{list(store.shape)} on disk")
      for index in self._sharding.addressable_devices_indices_map(store.shape).values():
        self._parts.setdefault(self._span(index), store[index].read())  # devices with the same part share one read
    except Exception as error:
      raise _unreadable(self._folder, self._name, error) from error

  @property
  def nbytes(self) -> int:
    """Host memory that the parts take."""
    return len(self._parts) * math.prod(self._sharding.shard_shape(self._leaf.shape)) * self._leaf.dtype.itemsize

  def result(self) -> dict[str, jax.Array]:
    try:
      parts = {span: part.result() for span, part in self._parts.items()}
    except Exception as error:
      raise _unreadable(self._folder, self._name, error) from error
    return {self._name: jax.make_array_from_callback(self._leaf.shape, self._sharding, lambda index: parts[self._span(index)])}

  def drop(self) -> None:
    for part in self._parts.values():
      part.cancel()

  def _span(self, index: digest.Index) -> tuple[tuple[int, int], ...]:
    return tuple(span.indices(length)[:2] for span, length in zip(index, self._leaf.shape, strict=True))


def _open(folder: pathlib.Path, name: str) -> Any:
  """A future of the TensorStore of one array, in the form that `manager` asks Orbax for."""
  import tensorstore  # here, since the commands that only list checkpoints need not pay for it

  store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}, "path": stored_name(name) + "/"}
  return tensorstore.open({"driver": "zarr", "kvstore": store, "fill_missing_data_reads": False}, open=True, read=True)


def _unreadable(folder: pathlib.Path, name: str, error: Exception) -> CheckpointError:
  where = f"{files_of(folder, name) or folder}: array {name}"
  if isinstance(error, (MemoryError, PermissionError)) or "PERMISSION_DENIED" in str(error):
    return CheckpointError(f"{where} cannot be read, though it may be whole: {_brief(error)}")
  return DamagedCheckpointError(f"{where} cannot be read: {_brief(error)}")


def _bytes_of(saved: ArrayRecord) -> int:
  return math.prod(saved.shape) * np.dtype(saved.dtype).itemsize


def _verify_array(step_folder: pathlib.Path, name: str, saved: ArrayRecord) -> None:
  wanted = {name: jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=_here())}
  found = digest.start(_read_arrays(step_folder, wanted))()
  _require_digest(step_folder, name, saved.sum, found[name])


def _require_digest(step_folder: pathlib.Path, name: str, expected: int, found: int) -> None:
  if found != expected:
    raise DamagedCheckpointError(
      f"{files_of(step_folder / 'state', name) or step_folder / 'state'}: array {name} has digest {found:016x}; "
      f"{expected:016x} was saved. Its bytes on disk changed."
    )


def _here() -> jax.sharding.Sharding:
  return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _join(subtree: str, name: str) -> str:
  return f"{subtree}/{name}" if subtree else name


def _brief(error: BaseException) -> str:
  """The first 300 characters of an error on one line: TensorStore's messages run to pages."""
  text = " ".join(f"{type(error).__name__}: {error}".split())
  return text if len(text) <= 300 else text[:300] + "..."
