"""Rows of a batch in the terminal: what stands on top, then every row, a turn a line. Nothing is told by colour alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from maxagent.tracking.console import legend, token_text
from maxagent.tracking.palette import FAILED_TERMINAL, ROLE_COLOURS, terminal_style
from maxagent.tracking.rows import Document, Inspection, Joint, Part, Token, figures, joints, parts
from maxagent.tracking.turns import printable

if TYPE_CHECKING:
  from rich.console import RenderableType
  from rich.text import Text

_LABEL_WIDTH = 9
_QUIET = "bright_black"
# What stands before the first token of either end of a joint.
_JOINT_MARKS = {"hole": ("hole ↓", "fill ↑"), "decision": ("✓ the true one", "made ↑")}


def inspection_view(inspection: Inspection) -> Iterator[RenderableType]:
  """What `data inspect` prints, piece by piece."""
  from rich.rule import Rule
  from rich.text import Text

  yield Text(printable(inspection.title), style="bold")
  yield Text(printable(inspection.subtitle))
  for label, value, detail in inspection.facts:
    yield Text(printable(f"{label.lower():<12}{value}" + (f"  {detail}" if detail else "")))
  yield from _tables(inspection)
  if inspection.rows:
    yield legend()
  for row in inspection.rows:
    yield Rule(Text(printable(row.title)))
    for document in row.documents:
      yield from _document(document)
    if row.padding:
      yield Text(f"│ {row.padding:,} places of padding", style=_QUIET)


def _tables(inspection: Inspection) -> Iterator[RenderableType]:
  from rich.text import Text

  heads = ("targets", "share", "supervised", "mean weight") if inspection.weighed else ("tokens", "share")
  for field in ("source", "role"):
    lines = [dataclasses.astuple(line)[: 1 + len(heads)] for line in figures(inspection.tallies, field)]
    if len(lines) > (field == "source"):  # the only source is all there is
      yield _table((field, *heads), lines)
  yield from (Text(printable(line)) for line in inspection.shares)
  if inspection.counts:
    counted = [(name.replace("_", " "), f"{count:,}") for name, count in inspection.counts.items()]
    yield _table(("the build counted", ""), counted)
  if inspection.rejects:
    yield _table(("left out, and why", "documents"), [(reason, f"{count:,}") for reason, count in inspection.rejects])


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> RenderableType:
  from rich.table import Table
  from rich.text import Text

  table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
  for n, head in enumerate(heads):
    table.add_column(head, justify="right" if n else "left", overflow="fold")
  for line in lines:
    table.add_row(*(Text(printable(cell)) for cell in line))
  return table


def _document(document: Document) -> Iterator[RenderableType]:
  """A line that says what it is, then its turns: role, weight, tokens."""
  from rich.table import Table
  from rich.text import Text

  yield Text("│ " + printable(" · ".join((document.source, document.summary, *document.notes))), style="bold")
  grid = Table.grid(padding=(0, 1, 0, 0))
  grid.add_column(width=_LABEL_WIDTH, justify="right", no_wrap=True)
  grid.add_column(no_wrap=True)
  grid.add_column(overflow="fold")
  joined = joints(document.tokens)
  for part in parts(document):
    style = terminal_style(part.label if part.label in ROLE_COLOURS else "marker")
    grid.add_row(Text(part.label, style=f"bold {style}"), Text(part.weight, style=_QUIET), _said(part, joined))
  yield grid


def _said(part: Part, joined: Sequence[Joint]) -> Text:
  from rich.text import Text

  body = Text.assemble(("✗ " if part.failed else "", FAILED_TERMINAL))
  for i, token in enumerate(part.tokens, part.start):
    for joint in joined:
      marks = zip((joint.origin, joint.target), _JOINT_MARKS[joint.kind], strict=True)
      body.append("".join(f"[{mark}]" for span, mark in marks if i == span.start), style="bold reverse")
    body.append_text(_token(token))
  body.append("".join(f" [{mark}]" for mark in part.marks), style=_QUIET)
  return body


def _token(token: Token) -> Text:
  from rich.text import Text

  shown = token_text(token.piece, token.role or "marker", failed=token.status == "err", weight=token.weight)
  return Text.assemble(("[next row: ", _QUIET), shown, ("]", _QUIET)) if token.beyond else shown
