"""Rows of a batch as a reader sees them: documents, their turns, and what in them belongs together.

The page and the terminal both show these. They are plain records, filled by whoever has read a batch or a shard.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from maxagent.traces.schema import SEGMENT_ROLES
from maxagent.tracking.charts import Chart

# Markers that only say in which order a document is told: what follows one on the same line is named by what it holds.
_OPENERS = frozenset({"bos", "fim_pre", "fim_suf", "fim_mid"})
_TOLD = frozenset({"hole", "decision", "continued"})
_STARTS = _OPENERS.union(SEGMENT_ROLES, ("ok", "fail", "choose"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Token:
  """One token with what is known of it."""

  id: int
  piece: str  # what it adds to the text; reserved tokens are spelled <|name|>
  reserved: str | None = None  # the reserved name
  role: str | None = None  # None: it begins a document or a piece of one, so nothing predicts it here
  status: str = "na"
  flags: tuple[str, ...] = ()
  weight: float = 0.0
  position: int = 0
  beyond: bool = False  # the last target of a row whose document goes on: its token stands in another row


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Document:
  """A document, or the piece of one that a row holds; `segment` is its number in the row, from 1."""

  source: str
  segment: int
  tokens: tuple[Token, ...]

  @property
  def continued(self) -> bool:
    """Whether it goes on from an earlier row."""
    return self.tokens[0].position > 0 or any("continued" in token.flags for token in self.tokens[:2])

  @property
  def goes_on(self) -> bool:
    """Whether its next token stands in another row."""
    return self.tokens[-1].beyond

  @property
  def summary(self) -> str:
    """Which it is and how much of it is learned: `segment 2 · 177 tokens · 93% supervised`."""
    targets = [token.weight > 0 for token in self.tokens if token.role]
    own = sum(not token.beyond for token in self.tokens)
    return f"segment {self.segment} · {own:,} tokens" + (f" · {sum(targets) / len(targets):.0%} supervised" if targets else "")

  @property
  def notes(self) -> list[str]:
    """What else there is to say: where it comes from and goes on, and how it was rewritten."""
    markers = [token.reserved for token in self.tokens]
    notes = ["goes on from an earlier row"] if self.continued else []
    if "fim_suf" in markers:
      notes.append("hole, suffix first" if markers[markers.index("fim_suf") - 1] == "fim_pre" else "hole, prefix first")
    if "choose" in markers:
      notes.append("decision")
    if any(token.reserved == "back" and "added" in token.flags for token in self.tokens):
      notes.append("fake")
    return [*notes, *(["goes on in another row"] if self.goes_on else [])]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
  """What stands under one heading: a row of a batch, or a document of a shard."""

  title: str
  documents: tuple[Document, ...]
  padding: int = 0  # places at its end that hold nothing


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
  """Targets of one source and role: how many, how many of them count, and what they weigh together.

  The latter two are None where no loss was asked; then all tokens are counted.
  """

  source: str
  role: str
  targets: int
  supervised: int | None = None
  weight: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
  """All that is shown of a batch or of a shard folder."""

  title: str
  subtitle: str
  facts: tuple[tuple[str, str, str], ...]  # (label, value, detail) of what stands on top
  rows: tuple[Row, ...]
  tallies: tuple[Tally, ...]
  shares: tuple[str, ...] = ()  # the mixture in words, one phase a line
  charts: tuple[Chart, ...] = ()
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)  # what the build counted
  rejects: tuple[tuple[str, int], ...] = ()  # (reason, documents), the most frequent first

  @property
  def weighed(self) -> bool:
    """Whether the tallies say what counts in the loss."""
    return any(tally.weight is not None for tally in self.tallies)

  @property
  def weights(self) -> list[float]:
    """The weights that occur in the rows, in order; 0 is always among them."""
    return sorted({0.0} | {t.weight for row in self.rows for d in row.documents for t in d.tokens})

  @property
  def roles(self) -> set[str]:
    """The roles that occur in the rows."""
    return {t.role for row in self.rows for d in row.documents for t in d.tokens if t.role}


@dataclasses.dataclass(frozen=True, slots=True)
class Joint:
  """Two places of a document that are one: a hole and its fill, the true candidate and the call that was made."""

  kind: str  # hole | decision
  origin: range
  target: range


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
  """Tokens [start, stop) of a document that a reader takes as one turn."""

  label: str  # a role, candidate, choose or outcome
  start: int
  stop: int
  tokens: tuple[Token, ...]

  @property
  def failed(self) -> bool:
    """Whether the environment called its step a failure."""
    return any(token.status == "err" for token in self.tokens)

  @property
  def weights(self) -> tuple[float, float]:
    """The least and the largest weight of its targets."""
    weights = [token.weight for token in self._own if token.role] or [0.0]
    return min(weights), max(weights)

  @property
  def weight(self) -> str:
    """Its weights in words: 1, or 0–1 where they differ."""
    return "–".join(f"{weight:.3g}" for weight in dict.fromkeys(self.weights))

  @property
  def marks(self) -> list[str]:
    """Its flags, but for those that joints and the document's notes tell: `added`, or `muted 3` where only three tokens are."""
    counts = collections.Counter(flag for token in self._own for flag in token.flags if flag not in _TOLD)
    return [flag if n == len(self._own) else f"{flag} {n}" for flag, n in counts.items()]

  @property
  def _own(self) -> list[Token]:
    return [token for token in self.tokens if token.reserved not in _OPENERS] or list(self.tokens)


def parts(document: Document) -> list[Part]:
  """The document's turns: every token in one, in order.

  Example, a hole where the tool's name was: [bos PRE goal g end] [call] [SUF args k end] [MID get] [eos].
  """
  tokens, frame, offered = document.tokens, _frame(document.tokens), candidates(document.tokens)
  starts, opening = [0], True  # whether the turn so far is openers alone
  for i in range(1, len(tokens)):
    opening = opening and tokens[i - 1].reserved in _OPENERS
    turn = tokens[i].reserved in _STARTS or _in_hole(tokens[i]) != _in_hole(tokens[i - 1]) or i == frame.stop - 1
    if turn and not opening:
      starts.append(i)
      opening = True
  firsts = {span.start for span in offered}
  made = []
  for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
    label = "candidate" if start in firsts else "choose" if start in frame else _label(tokens[start:stop])
    made.append(Part(label, start, stop, tokens[start:stop]))
  return made


def joints(tokens: Sequence[Token]) -> list[Joint]:
  """What belongs together: the hole's place is where `<|fim_suf|>` stands, in either order of telling."""
  found = []
  fill = [i for i, token in enumerate(tokens) if _in_hole(token)]
  place = [i for i, token in enumerate(tokens) if token.reserved == "fim_suf"]
  if fill and place:
    found.append(Joint("hole", range(place[0], place[0] + 1), range(fill[0], fill[-1] + 1)))
  made = [i for i, token in enumerate(tokens) if "decision" in token.flags and "added" not in token.flags]
  for span in candidates(tokens) if made else ():
    if [tokens[i].id for i in span] == [tokens[i].id for i in made]:
      found.append(Joint("decision", span, range(made[0], made[-1] + 1)))
  return found


def candidates(tokens: Sequence[Token]) -> list[range]:
  """The calls that a decision offers: what stands between `<|choose|>` and its `<|end|>`."""
  frame = _frame(tokens)
  ends = [i + 1 for i in frame[:-1] if tokens[i].reserved == "end"]
  return [range(start, stop) for start, stop in itertools.pairwise([frame.start + 1, *ends])]


def _frame(tokens: Sequence[Token]) -> range:
  """From `<|choose|>` to the `<|end|>` that closes it, which follows a candidate's own; empty where there is none."""
  start = next((i for i, token in enumerate(tokens) if token.reserved == "choose"), None)
  if start is None:
    return range(0)
  inner = range(start + 1, len(tokens))
  stop = next((i + 1 for i in inner if tokens[i].reserved == "end" and tokens[i - 1].reserved in ("end", "choose")), None)
  return range(start, stop or len(tokens))


def _label(tokens: Sequence[Token]) -> str:
  named = next((token.role for token in tokens if token.role not in (None, "marker", "pad")), None)
  return named or ("outcome" if any(token.reserved in ("ok", "fail") for token in tokens) else "marker")


def _in_hole(token: Token) -> bool:
  return "hole" in token.flags


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
  """A line of a table, as text: of a source or a role how many targets, which share of all, and what counts of them."""

  name: str
  targets: str
  share: str
  supervised: str
  weight: str


def figures(tallies: Sequence[Tally], field: str) -> list[Figures]:
  """The tallies summed by `source` or by `role`, the largest first; what was not asked is a dash."""
  every = sum(tally.targets for tally in tallies) or 1
  groups: dict[str, list[Tally]] = {}
  for tally in tallies:
    groups.setdefault(getattr(tally, field), []).append(tally)
  lines = []
  for name, group in sorted(groups.items(), key=lambda item: -sum(tally.targets for tally in item[1])):
    targets = sum(tally.targets for tally in group)
    supervised = [tally.supervised for tally in group if tally.supervised is not None]
    weights = [tally.weight for tally in group if tally.weight is not None]
    lines.append(
      Figures(
        name, f"{targets:,}", f"{targets / every:.1%}",
        f"{sum(supervised) / max(1, targets):.1%}" if supervised else "–",
        f"{sum(weights) / max(1, targets):.3g}" if weights else "–",
      )
    )  # fmt: skip
  return lines
