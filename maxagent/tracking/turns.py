"""A trace as a reader sees it: turns, what failed, what was injected. The report and the terminal both show these."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

from maxagent.errors import DataError, TraceError
from maxagent.traces.schema import Segment, Trace

EPISODES_FILE = "episodes.jsonl"
# What stands in the err_kind of a call that was forced; a call of the agent's own that failed has the environment's word there.
INJECTED_KINDS = frozenset({"wrong_tool", "wrong_argument", "missing_precondition", "stale_state", "repeated_action"})
_LONGEST_TEXT = 4000  # characters shown of one segment
# Control characters, and those that reorder or hide what stands around them: a terminal or a page would obey them.
_UNSAFE = re.compile(
  "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
  "\U000e0000-\U000e007f\ud800-\udfff]"
)


@dataclasses.dataclass(frozen=True)
class Turn:
  """One segment, ready to be shown; `text` and `args` hold no character that a terminal or a page would obey."""

  role: str
  text: str
  args: str | None
  step: int | None
  failed: bool
  injected: bool
  err_kind: str | None
  fixes_step: int | None


@dataclasses.dataclass(frozen=True)
class Episode:
  """A line of episodes.jsonl: what was played, of which kind, and whether it was solved."""

  trace: Trace
  kind: str
  success: bool
  step: int | None


def turns(trace: Trace) -> list[Turn]:
  """The turns of a trace, in order."""
  return [turn(segment) for segment in trace.segments]


def turn(segment: Segment) -> Turn:
  """One segment as a turn; a call whose err_kind is an injector's was forced on the agent."""
  return Turn(
    role=segment.role,
    text=printable(segment.text),
    args=None if segment.args is None else printable(segment.args),
    step=segment.step,
    failed=segment.status == "err",
    injected=segment.role == "call" and segment.err_kind in INJECTED_KINDS,
    err_kind=None if segment.err_kind is None else printable(segment.err_kind),
    fixes_step=segment.fixes_step,
  )  # fmt: skip


def printable(text: str, *, longest: int = _LONGEST_TEXT) -> str:
  """Text whose control characters show as escapes, cut after `longest` characters with a count of the rest."""
  shown = _UNSAFE.sub(lambda m: m[0].encode("unicode_escape").decode(), text[:longest])
  return shown if len(text) <= longest else f"{shown} … {len(text) - longest:,} more characters"


def read_episodes(path: str | os.PathLike[str], *, count: int = 10) -> list[Episode]:
  """Up to `count` episodes of a file, as many of each kind and outcome as there are, in the file's order within each.

  Raises:
    DataError: a line that is not a stored episode; the message names it.
  """
  groups: dict[tuple[str, bool], list[Episode]] = {}
  with open(path, "rb") as file:
    for number, line in enumerate(file, start=1):
      if line.strip():
        episode = _episode(line, f"{Path(path)}, line {number}")
        group = groups.setdefault((episode.kind, episode.success), [])
        if len(group) < count:
          group.append(episode)
  # Recovery before clean and failures before successes: what a reader can learn most from stands first.
  queues = [groups[key] for key in sorted(groups, key=lambda key: (key[0] != "recovery", key[1]))]
  taken = [group[n] for n in range(count) for group in queues if n < len(group)]
  return sorted(taken[:count], key=lambda e: (e.kind != "recovery", e.success))


def _episode(line: bytes, where: str) -> Episode:
  try:
    record: dict[str, Any] = json.loads(line)
    return Episode(
      trace=Trace.from_json(json.dumps(record["trace"])),
      kind=str(record["kind"]),
      success=bool(record["success"]),
      step=record.get("step"),
    )
  except (ValueError, KeyError, TypeError, AttributeError, TraceError) as error:
    raise DataError(
      f"{where}: not a stored episode ({error}); expected an object with trace, kind, success and step. "
      "Run `maxagent evaluate` again to write the file anew."
    ) from error
