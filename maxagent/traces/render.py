"""A trace as typed text: pieces that the tokenizer turns into ids, roles and statuses.

Grammar: `<|role|> text <|end|>`; a call is `<|call|> name <|args|> json <|end|>`; an observation of a failed action begins
`<|obs|><|err|>`. A document is `<|bos|>`, its segments, `<|ok|>` or `<|fail|>` where the outcome is known, `<|eos|>`.
"""

from __future__ import annotations

import dataclasses

from maxagent.traces.schema import Flag, Outcome, Role, Segment, Status, Trace

_NO_FLAGS = Flag(0)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
  """A run of text, or one reserved token (`marker`, `text` then is its name without brackets), with its types."""

  text: str
  marker: bool
  role: Role
  status: Status = Status.NA
  flags: Flag = _NO_FLAGS


def render(trace: Trace) -> list[Piece]:
  """The whole document, `<|bos|>` to `<|eos|>`; what frames the segments has role MARKER.

  Example, a goal `g` and an answer `b` of an episode that succeeded:
      <|bos|> <|goal|> g <|end|> <|answer|> b <|end|> <|ok|> <|eos|>
  """
  pieces = [_frame("bos")]
  for segment in trace.segments:
    pieces += render_segment(segment)
  if trace.outcome != Outcome.UNKNOWN:
    pieces.append(_frame(trace.outcome))
  pieces.append(_frame("eos"))
  return pieces


def render_segment(segment: Segment) -> list[Piece]:
  """One segment with its markers, all of its role; a call turns to role ARGS at `<|args|>`. Empty text adds no piece."""
  status = Status[segment.status.upper()]
  role = Role[segment.role.upper()]
  heads = ["obs", "err"] if role == Role.OBS and status == Status.ERR else [segment.role]
  pieces = [Piece(head, True, role, status) for head in heads] + _text(segment.text, role, status)
  if segment.args is not None:
    role = Role.ARGS
    pieces += [Piece("args", True, role, status), *_text(segment.args, role, status)]
  pieces.append(Piece("end", True, role, status))
  return pieces


def _frame(name: str) -> Piece:
  return Piece(str(name), True, Role.MARKER)


def _text(text: str, role: Role, status: Status) -> list[Piece]:
  return [Piece(text, False, role, status)] if text else []
