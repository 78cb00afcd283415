"""The trace: what an agent was given, did and saw, as typed segments.

A stored trace is one JSON object, `Trace.to_json()`. `Role`, `Status` and `Flag` are the uint8 ids that travel beside every
token to the loss, so their numbers are part of the shard format: append, never renumber.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any

from maxagent.errors import TraceError


class Role(enum.IntEnum):
  """Who wrote a token and why; the loss weights are keyed by it."""

  WEB = 0
  SYSTEM = 1
  TOOLS = 2
  GOAL = 3
  USER = 4
  PLAN = 5
  THINK = 6
  CALL = 7
  ARGS = 8
  OBS = 9
  BACK = 10
  REFLECT = 11
  SAY = 12
  ANSWER = 13
  MARKER = 14
  PAD = 15


class Status(enum.IntEnum):
  """What the environment said of a step."""

  NA = 0
  OK = 1
  ERR = 2


class Flag(enum.IntFlag):
  """Bits of a token's flags byte."""

  HOLE = 1  # the fill of a structural hole
  MUTED = 2  # weight 0 whatever the role
  DECISION = 4  # the answer of a decision record
  ADDED = 8  # not in the original document
  CONTINUED = 16  # repeated or resumed from an earlier row


class Outcome(enum.StrEnum):
  """How the episode ended, said by its verifier."""

  OK = "ok"
  FAIL = "fail"
  UNKNOWN = "unknown"


RESERVED_SLOTS = 64
_NAMED = (
  "bos eos pad end system tools goal user plan think call args obs err back reflect say answer ok fail choose "
  "fim_pre fim_suf fim_mid".split()
  + [f"hole_{n}" for n in range(16)]
  + ["mem"]
)
# The 64 reserved names in id order; the unnamed rest is kept free.
RESERVED: tuple[str, ...] = tuple(_NAMED + [f"free_{n}" for n in range(RESERVED_SLOTS - len(_NAMED))])

# Roles a segment can have; args belong to their call, markers to the renderer.
SEGMENT_ROLES: tuple[str, ...] = (
  "system", "tools", "goal", "user", "plan", "think", "call", "obs", "back", "reflect", "say", "answer",
)  # fmt: skip
# The model writes these; the harness writes the rest, and nothing of the rest is ever sampled.
MODEL_ROLES: frozenset[str] = frozenset({"plan", "think", "call", "back", "reflect", "say", "answer"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
  """One typed piece of a trace.

  A call's `text` is the tool's name and `args` its JSON text; for every other role `args` is None.
  """

  role: str
  text: str
  args: str | None = None
  step: int | None = None
  call_id: str | None = None
  status: str = "na"
  err_kind: str | None = None
  fixes_step: int | None = None
  confidence: float = 1.0

  def __post_init__(self) -> None:
    if self.role not in SEGMENT_ROLES:
      raise TraceError(f"segment role is {self.role!r}; expected one of {', '.join(SEGMENT_ROLES)}.")
    if self.status not in ("ok", "err", "na"):
      raise TraceError(f"segment status is {self.status!r}; expected ok, err or na.")
    if not isinstance(self.text, str):
      raise TraceError(f"segment text is a {type(self.text).__name__}; expected a string.")
    if not isinstance(self.args, str | None):
      raise TraceError(f"segment args is a {type(self.args).__name__}; expected the JSON text of the arguments, or None.")
    if (self.role == "call") != (self.args is not None):
      raise TraceError(f"segment role is {self.role!r} and args is {self.args!r}; a call has args, nothing else does.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
  """One episode: the segments in order and what is known of their origin.

  `tools` are the declared schemas (JSON objects); `goal` repeats the goal segment's text for search. `policy` names who acted.
  """

  id: str
  family: str
  segments: tuple[Segment, ...]
  tools: tuple[dict[str, Any], ...] = ()
  goal: str = ""
  env_seed: int | None = None
  outcome: str = "unknown"
  policy: str = "unknown"

  def __post_init__(self) -> None:
    if not self.segments:
      raise TraceError(f"trace {self.id!r} has no segments; a trace holds at least one.")
    if self.outcome not in list(Outcome):
      raise TraceError(f"trace {self.id!r} has outcome {self.outcome!r}; expected ok, fail or unknown.")

  def to_json(self) -> str:
    """The stored form: one line of JSON, fields at their defaults left out of segments."""
    record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("segments", "tools")}
    record["tools"] = list(self.tools)
    record["segments"] = [_segment_record(s) for s in self.segments]
    return json.dumps(record, ensure_ascii=False)

  @classmethod
  def from_json(cls, text: str | bytes) -> Trace:
    """The inverse of `to_json`.

    Raises:
      TraceError: not JSON, a missing or unknown field, or a segment that breaks the schema.
    """
    try:
      record = json.loads(text)
    except ValueError as error:
      raise TraceError(f"a stored trace is not JSON ({error}); expected one JSON object per record.") from error
    if not isinstance(record, dict):
      raise TraceError(f"a stored trace is a JSON {type(record).__name__}; expected an object.")
    try:
      segments = tuple(Segment(**s) for s in record.pop("segments"))
      tools = tuple(record.pop("tools", ()))
      return cls(segments=segments, tools=tools, **record)
    except (KeyError, TypeError) as error:
      raise TraceError(f"a stored trace does not fit the schema ({error}); see maxagent.traces.schema.Trace.") from error


_SEGMENT_DEFAULTS = tuple((f.name, f.default) for f in dataclasses.fields(Segment))  # read once: a build asks for every segment


def _segment_record(segment: Segment) -> dict[str, Any]:
  return {name: value for name, default in _SEGMENT_DEFAULTS if (value := getattr(segment, name)) != default}
