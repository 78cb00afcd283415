"""What lies in a folder of checkpoints, read from its small files alone: nothing is changed, and no array is read."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

from maxagent.checkpoint.manager import UNFINISHED
from maxagent.checkpoint.restore import QUARANTINE, describe, saved_steps
from maxagent.errors import CheckpointError

SAVED, DAMAGED, QUARANTINED, UNFINISHED_SAVE = "saved", "damaged", "quarantined", "unfinished"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
  """One folder of a step; what cannot be known of it is None."""

  step: int
  state: str  # saved | damaged | quarantined | unfinished
  reason: str  # empty when saved
  path: pathlib.Path
  size_bytes: int
  saved_at: float | None  # seconds since 1970
  tokens: int | None = None
  processes: int | None = None  # that saved it

  @property
  def readable(self) -> bool:
    """Whether a run would read it: it lies under its number."""
    return self.state in (SAVED, DAMAGED)


def catalog(folder: str | pathlib.Path) -> list[Entry]:
  """The saved steps, ascending; then those that were set aside as damaged; then what a kill left, or a run writes now.

  A step is `saved` when its small files match their digests; only `verify` reads its arrays.
  """
  folder = pathlib.Path(folder)
  found = [_saved(folder / str(step), step) for step in saved_steps(folder)]
  found += [_set_aside(path) for path in _numbered(folder / QUARANTINE)]
  return found + [_unfinished(path) for path in sorted(folder.glob(UNFINISHED))]


def _saved(path: pathlib.Path, step: int) -> Entry:
  try:
    tokens, processes = describe(path, step)
  except CheckpointError as error:
    return _entry(path, step, DAMAGED, str(error))
  return dataclasses.replace(_entry(path, step, SAVED, ""), tokens=tokens, processes=processes)


def _set_aside(path: pathlib.Path) -> Entry:
  reason = path.with_name(path.name + ".txt")  # written by `quarantine`
  told = reason.read_text(errors="replace").strip() if reason.exists() else "nobody wrote why"
  return _entry(path, _step(path), QUARANTINED, told)


def _unfinished(path: pathlib.Path) -> Entry:
  return _entry(path, _step(path), UNFINISHED_SAVE, "it is being saved, or a kill cut it short; the run's next save removes it")


def _entry(path: pathlib.Path, step: int, state: str, reason: str) -> Entry:
  size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
  return Entry(step=step, state=state, reason=reason, path=path, size_bytes=size_bytes, saved_at=_saved_at(path))


def _saved_at(path: pathlib.Path) -> float | None:
  """When Orbax committed it; a copy of the files has other times."""
  try:
    nanoseconds = json.loads((path / "_CHECKPOINT_METADATA").read_bytes())["commit_timestamp_nsecs"]
    return nanoseconds / 1e9 if nanoseconds else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _numbered(folder: pathlib.Path) -> list[pathlib.Path]:
  if not folder.is_dir():
    return []
  return sorted(
    (path for path in folder.iterdir() if path.is_dir() and path.name[0].isdigit()), key=lambda p: (_step(p), p.name)
  )


def _step(path: pathlib.Path) -> int:
  found = re.match(r"\d+", path.name)
  return int(found[0]) if found else 0
