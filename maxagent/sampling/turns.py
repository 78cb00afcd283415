"""Between ids and segments: the harness's words as ids, the model's ids as segments, whatever it wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from maxagent.data.encode import encode_pieces
from maxagent.environments.base import format_answer, format_call
from maxagent.sampling.logits import HANDOVER_ROLES
from maxagent.tokenizer import Tokenizer
from maxagent.traces.render import render_segment
from maxagent.traces.schema import MODEL_ROLES, Segment

MALFORMED = "malformed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
  """A model's turn, read: its segments, and its action if it closed with one.

  `last_start` is where the last segment begins in the turn's tokens, action or not.
  """

  segments: tuple[Segment, ...]
  action: str | None  # as `Environment.step` takes it
  last_start: int
  open: bool  # the last segment lacks its end


def segment_ids(segment: Segment, tokenizer: Tokenizer) -> list[int]:
  """The ids of a segment, encoded exactly as training data is."""
  ids: list[int] = encode_pieces(render_segment(segment), tokenizer).ids.tolist()
  return ids


def prompt_ids(segments: Iterable[Segment], tokenizer: Tokenizer) -> list[int]:
  """The start of a document: `<|bos|>` and the segments."""
  return [tokenizer.bos_id, *(token for segment in segments for token in segment_ids(segment, tokenizer))]


def read_turn(tokens: Sequence[int], tokenizer: Tokenizer) -> Written:
  """Takes a turn apart.

  What breaks the grammar becomes a segment too, of the role it began with (`say` where it began with none), with status err and
  kind malformed; reserved tokens in it are spelled out as text, so a stored trace renders to a document without stray markers.

  Example; `call` .. `end` are ids:
      [plan, p, end, call, get, args, {}, end]  ->  plan p, call get {}; the action is `call get {}`
      [p, end, call, get, end]                  ->  say p (malformed), call get with empty args (malformed)
  """
  parts = _split(tokens, tokenizer)
  segments = tuple(part.segment(tokenizer) for part in parts)
  last = parts[-1] if parts else None
  closed = last is not None and last.closed
  action = _action(segments[-1]) if closed and segments[-1].role in HANDOVER_ROLES else None
  return Written(
    segments=segments, action=action, last_start=last.start if last else 0, open=last is not None and last.opened and not closed
  )


def _action(segment: Segment) -> str:
  return format_answer(segment.text) if segment.args is None else format_call(segment.text, segment.args)


@dataclasses.dataclass(kw_only=True)
class _Part:
  """One segment's ids; `opened` by a role marker, or stray."""

  start: int
  role: str
  opened: bool
  text: list[int] = dataclasses.field(default_factory=list)
  args: list[int] | None = None
  closed: bool = False
  stray_marker: bool = False

  def take(self, token: int, name: str | None) -> None:
    if name == "args" and self.role == "call" and self.args is None:
      self.args = []
      return
    self.stray_marker |= name is not None
    (self.text if self.args is None else self.args).append(token)

  def segment(self, tokenizer: Tokenizer) -> Segment:
    args = None
    if self.role == "call":
      args = tokenizer.decode(self.args or ())
    sound = self.opened and self.closed and not self.stray_marker and (self.role != "call" or self.args is not None)
    segment = Segment(role=self.role, text=tokenizer.decode(self.text), args=args)
    return segment if sound else dataclasses.replace(segment, status="err", err_kind=MALFORMED)


def _split(tokens: Sequence[int], tokenizer: Tokenizer) -> list[_Part]:
  parts: list[_Part] = []
  for place, token in enumerate(tokens):
    name = tokenizer.reserved_name(token)
    if name in MODEL_ROLES:
      parts.append(_Part(start=place, role=name, opened=True))
      continue
    if not parts or parts[-1].closed:
      parts.append(_Part(start=place, role="say", opened=False))
    if name == "end":
      parts[-1].closed = True
    else:
      parts[-1].take(token, name)
  return parts
