"""Other people's formats in: each module here without an underscore is one format, found by its `LOADER`.

    reading = read(cut(blobs, SUFFIXES[".jsonl"]))  # sniffs; read(..., format="openai") does not
    reading.format                                  # what was chosen
    for item in reading.items:                      # Loaded(trace, origin) or Refused(error, origin): nothing is left out

A new format is one new file: a module with a `LOADER`, whose `sniff` says how sure it is that a record is of its format (0 to
1) and whose `traces` makes the traces of a record or raises TraceError. `_dialogue.Dialogue` has the rules that all formats
share.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from maxagent.errors import ConfigError, TraceError
from maxagent.traces.infer import infer
from maxagent.traces.loaders._cut import SUFFIXES, Cut, Record, Refused, cut
from maxagent.traces.schema import Trace

__all__ = [
  "AUTO", "SUFFIXES", "Cut", "Loaded", "Loader", "Reading", "Record", "Refused", "choose", "choose_format", "cut", "formats",
  "load", "loader", "read",
]  # fmt: skip

AUTO = "auto"
NO_FORMAT = "none"
_SNIFFED = 16  # records of a file that decide its format


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loader:
  """One format: its name, how sure it is of a record (0 to 1), and the traces of a record with its origin."""

  name: str
  sniff: Callable[[object], float]
  traces: Callable[[object, str], Sequence[Trace]]
  declares_status: bool = False  # the record says which steps failed, so nothing is inferred

  def load(self, record: object, *, origin: str) -> list[Trace]:
    """The traces of one parsed record, steps and statuses inferred where the format does not say them.

    Raises:
      TraceError: the record is not of this format, or a part of it is not what the format says.
    """
    try:
      traces = list(self.traces(record, origin))
      return traces if self.declares_status else [infer(trace) for trace in traces]
    except RecursionError as error:
      raise TraceError("the record is nested too deeply to be read; expected less than some hundred levels.") from error


class Loaded(NamedTuple):
  """A trace and where its record was found."""

  trace: Trace
  origin: str


class Reading(NamedTuple):
  """The format that was chosen (`none` where no loader knows the records), and what became of each record, in order."""

  format: str
  items: Iterator[Loaded | Refused]


@functools.cache
def _found() -> dict[str, Loader]:
  names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
  loaders = [importlib.import_module(f"{__name__}.{name}").LOADER for name in names]
  return {found.name: found for found in loaders}


def formats() -> tuple[str, ...]:
  """The registered format names, sorted."""
  return tuple(sorted(_found()))


def loader(format: str) -> Loader:
  """The loader of a format.

  Raises:
    ConfigError: no format of that name.
  """
  if format not in _found():
    raise ConfigError(f"format is {format!r}; registered are {', '.join(formats())}, and {AUTO} chooses by the records.")
  return _found()[format]


def choose(values: Iterable[object]) -> Loader | None:
  """The loader that is surest of these records, taken together; None where none knows any."""
  sample = list(values)
  scores = {name: sum(found.sniff(value) for value in sample) for name, found in _found().items()}
  best = max(sorted(scores), key=lambda name: scores[name])
  return _found()[best] if scores[best] > 0 else None


def read(records: Iterable[Record | Refused], *, format: str = AUTO) -> Reading:
  """What the records of one file hold; AUTO sniffs the first of them.

  Raises:
    ConfigError: no format of that name.
  """
  items = iter(records)
  head = list(itertools.islice(items, _SNIFFED)) if format == AUTO else []
  chosen = choose_format(head, format)
  return Reading(chosen, load(itertools.chain(head, items), chosen))


def choose_format(records: Iterable[Record | Refused], format: str = AUTO) -> str:
  """The format's own name or, of AUTO, that of the loader that is surest of the first records; NO_FORMAT where none is.

  Raises:
    ConfigError: no format of that name.
  """
  if format != AUTO:
    return loader(format).name
  chosen = choose(item.value for item in itertools.islice(records, _SNIFFED) if isinstance(item, Record))
  return chosen.name if chosen else NO_FORMAT


def load(records: Iterable[Record | Refused], format: str) -> Iterator[Loaded | Refused]:
  """What became of each record of a format (of NO_FORMAT, each is refused), in order."""
  chosen = None if format == NO_FORMAT else loader(format)
  for item in records:
    if isinstance(item, Refused):
      yield item
      continue
    try:
      if chosen is None:
        raise _unknown(item.value)
      for trace in chosen.load(item.value, origin=item.origin):
        yield Loaded(trace, item.origin)
    except TraceError as error:
      yield Refused(error, item.origin)


def _unknown(value: object) -> TraceError:
  has = (
    f"an object with {', '.join(map(repr, value)) or 'no field'}" if isinstance(value, dict) else f"a {type(value).__name__}"
  )
  return TraceError(
    f"no loader knows this record, {has[:200]}; the formats are {', '.join(formats())}. Name one, or convert the file."
  )
