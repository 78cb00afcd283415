"""Metrics out: one JSON object a line in WORKDIR/metrics.jsonl, and the same numbers as TensorBoard events.

A record is `{"step": 7, "tokens": 57344, "seconds": 3.1, "train/loss": 2.25, ...}`: step and tokens are totals since the run
began, seconds is the run's own clock. A metric that is not a finite number is stored as null, since NaN and Infinity are not
JSON; TensorBoard gets no event for it. A line may also be an event, `{"event": "...", ...}`, which readers of curves skip.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from maxagent.errors import DataError, DiskFullError

METRICS_FILE = "metrics.jsonl"
_OWN_FIELDS = ("step", "tokens", "seconds")


@dataclasses.dataclass(frozen=True)
class _Scan:
  """The whole lines of a metrics file, what they say, and how many bytes a torn last line holds."""

  lines: list[bytes]
  records: list[dict[str, Any]]
  torn_bytes: int


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The records of a metrics file, in order; a value that was not finite is None.

  A last line without its line break is a write that a kill cut short and is left out.

  Raises:
    DataError: no such file, or a line that is no record; the message names the line.
  """
  return _scan(Path(path)).records


def _scan(path: Path) -> _Scan:
  try:
    content = path.read_bytes()
  except OSError as error:
    raise DataError(
      f"cannot read {path} ({error.strerror}); expected the metrics of a run. Give the folder that `maxagent train` wrote."
    ) from error
  *lines, torn = content.split(b"\n")
  records = [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
  return _Scan(lines, records, len(torn))


def _record(line: bytes, where: str) -> dict[str, Any]:
  try:
    record = json.loads(line)
  except ValueError as error:
    raise DataError(
      f"{where}: not JSON ({error}); expected one metrics record. Remove the line, or restore the file."
    ) from error
  if not isinstance(record, dict):
    raise DataError(f"{where}: a JSON {type(record).__name__}; expected an object with step, tokens and seconds.")
  if "event" not in record and not isinstance(record.get("step"), int):
    raise DataError(f"{where}: step is {record.get('step')!r}; expected an integer. Remove the line, or restore the file.")
  return record


def replace_file(path: Path, content: bytes) -> None:
  """Puts `content` where `path` is, whole or not at all: a kill leaves the old file or the new one."""
  temporary = path.with_name(path.name + ".tmp")
  with open(temporary, "wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


class MetricsWriter:
  """Appends a run's records, one per step, ever. Only process 0 of a run holds one.

  Args:
    workdir: the run's folder; created if absent.
    resume_step: the step that was restored: later records are cut, as the run writes them again. None begins a new run; records
      that lie there from an attempt without a checkpoint are moved aside to `metrics.before-<n>.jsonl`.
  """

  def __init__(self, workdir: str | os.PathLike[str], *, resume_step: int | None = None) -> None:
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    self._path = folder / METRICS_FILE
    self._last_step: int | None = None
    self.cut_records = 0  # records after resume_step that were removed
    self.torn_lines = 0  # 1 if a kill had cut the last line short
    if resume_step is None:
      _set_aside(self._path)
    elif self._path.exists():
      self._cut_back(resume_step)
    # Unbuffered: a record is with the operating system when `write` returns, so `kill -9` cannot lose it.
    self._file = open(self._path, "ab", buffering=0)
    self._events = _open_events(folder / "tensorboard", first_step=0 if resume_step is None else resume_step + 1)

  @property
  def last_step(self) -> int | None:
    """The step of the last record in the file; None when there is none."""
    return self._last_step

  def write(self, step: int, metrics: Mapping[str, float], *, tokens: int, seconds: float) -> None:
    """Appends the record of one step; metrics of training and evaluation go into the same record.

    Raises:
      DataError: the step is not after the last one, or a metric is named like one of a record's own fields.
      DiskFullError: no room; the file is left as it was.
    """
    if self._last_step is not None and step <= self._last_step:
      raise DataError(
        f"a metrics record of step {step} was given after step {self._last_step}; expected a later step. "
        "Merge all metrics of a step into one record, and pass resume_step when a run goes on."
      )
    for name in _OWN_FIELDS:
      if name in metrics:
        raise DataError(f"a metric is named {name!r}, as a record's own field is; expected another name.")
    values = {name: float(value) for name, value in metrics.items()}
    record = {"step": int(step), "tokens": int(tokens), "seconds": round(float(seconds), 6)} | {
      name: value if math.isfinite(value) else None for name, value in values.items()
    }
    self._append(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    self._last_step = int(step)
    for name, value in values.items():
      if math.isfinite(value):
        self._events.add_scalar(name, value, global_step=int(step))

  def close(self) -> None:
    """Flushes and closes both outputs."""
    self._file.close()
    self._events.close()

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
    self.close()

  def _append(self, line: bytes) -> None:
    start = os.fstat(self._file.fileno()).st_size
    try:
      if self._file.write(line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
      self._file.truncate(start)  # half a line would swallow the next record
      if error.errno != errno.ENOSPC:
        raise
      raise DiskFullError(
        f"no room for {len(line)} bytes of metrics in {self._path}; free some space and start again."
      ) from error

  def _cut_back(self, resume_step: int) -> None:
    scan = _scan(self._path)
    kept = [line for line, record in zip(scan.lines, scan.records, strict=True) if record.get("step", -1) <= resume_step]
    self.cut_records = len(scan.lines) - len(kept)
    self.torn_lines = int(scan.torn_bytes > 0)
    if self.cut_records or self.torn_lines:
      replace_file(self._path, b"".join(line + b"\n" for line in kept))
    steps = [r["step"] for r in scan.records if "event" not in r and r["step"] <= resume_step]
    self._last_step = max(steps, default=None)


def _set_aside(path: Path) -> None:
  if not path.exists() or path.stat().st_size == 0:
    return
  number = 1
  while (target := path.with_name(f"{path.stem}.before-{number}{path.suffix}")).exists():
    number += 1
  os.replace(path, target)


def _open_events(folder: Path, *, first_step: int) -> Any:
  from tensorboardX import SummaryWriter

  # purge_step makes TensorBoard hide what an earlier attempt logged from that step on.
  return SummaryWriter(str(folder), purge_step=first_step, flush_secs=10)
