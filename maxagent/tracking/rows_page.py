"""Rows of a batch as one page: it asks nobody for anything, and runs no script but its own, which only moves a cursor."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from maxagent.tracking import page, palette
from maxagent.tracking.rows import Document, Inspection, Joint, Part, Row, Token, figures, joints, parts
from maxagent.tracking.turns import printable
from maxagent.tracking.writers import replace_file

_TEMPLATE = "rows.html.j2"
_SCRIPT = Path(__file__).parent / "rows.js.j2"
_PREVIEW = 48  # characters of a fill that are shown at its hole


def write_rows(inspection: Inspection, path: str | os.PathLike[str]) -> Path:
  """Writes the page, whole or not at all; returns its path."""
  replace_file(Path(path), page.render(_TEMPLATE, _context(inspection)))
  return Path(path)


def _context(inspection: Inspection) -> dict[str, Any]:
  weights = inspection.weights
  levels = {weight: level for level, weight in enumerate(weights)}
  sources = sorted({tally.source for tally in inspection.tallies})
  colours = {name: palette.series_colour(n) for n, name in enumerate(sources)}
  script = _SCRIPT.read_text(encoding="utf-8")
  return {
    "title": inspection.title,
    "subtitle": inspection.subtitle,
    "tiles": [{"label": label, "value": value, "detail": detail} for label, value, detail in inspection.facts],
    "by_source": figures(inspection.tallies, "source"),
    "weighed": inspection.weighed,
    "by_role": figures(inspection.tallies, "role"),
    "source_colour": colours.__getitem__,
    "role_colour": palette.role_colour,
    "all_roles": list(palette.ROLE_COLOURS),
    "shares": inspection.shares,
    "cards": page.cards(inspection.charts),
    "counts": [(name.replace("_", " "), f"{count:,}") for name, count in inspection.counts.items()],
    "rejects": [(reason, f"{count:,}") for reason, count in inspection.rejects],
    "roles": [role for role in palette.ROLE_COLOURS if role in inspection.roles],
    "levels": [(level, f"{weight:.3g}", _shade(weight, weights[-1])) for weight, level in levels.items()],
    "rows": [_row(row, n, levels, colours) for n, row in enumerate(inspection.rows)],
    "script": Markup(script),
    # Only this script may run, whatever a trace holds.
    "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
  }


def _shade(weight: float, largest: float) -> float:
  """How strong the shade of a weight is, 0 to 1: a tenth of the largest weight must still be told from none."""
  return round((weight / largest) ** 0.5, 3) if weight else 0.0


def _row(row: Row, number: int, levels: Mapping[float, int], colours: Mapping[str, str]) -> dict[str, Any]:
  return {
    "title": row.title,
    "padding": f"{row.padding:,}" if row.padding else "",
    "documents": [
      _document(document, f"r{number}d{n}", levels, colours.get(document.source, "var(--idle)"))
      for n, document in enumerate(row.documents)
    ],
  }


def _document(document: Document, name: str, levels: Mapping[float, int], colour: str) -> dict[str, Any]:
  joined = joints(document.tokens)
  return {
    "source": document.source,
    "colour": colour,
    "segment": document.segment,
    "summary": document.summary,
    "notes": document.notes,
    "turns": [_turn(part, document, name, joined, levels) for part in parts(document)],
  }


def _turn(part: Part, document: Document, name: str, joined: list[Joint], levels: Mapping[float, int]) -> dict[str, Any]:
  span = range(part.start, part.stop)
  role = part.label if part.label in palette.ROLE_COLOURS else "marker"
  true = any(joint.kind == "decision" and joint.origin.start in span for joint in joined)
  return {
    "label": part.label,
    "role": role,
    "failed": part.failed,
    "margin": " · ".join([*part.marks, *([f"× {part.weight}"] if part.weights != (1, 1) else [])]),
    "true": true,
    "rail": " ".join(_rail(span, joined)),
    "text": Markup("").join(_text(part, document, name, joined, levels)),
  }


def _rail(span: range, joined: list[Joint]) -> Iterator[str]:
  """Which part of the line between two joined places runs beside these tokens."""
  for joint in joined:
    first, last = joint.origin.start, joint.target.start
    if span.stop > first and span.start <= last:
      yield "rail" + (" begins" if first in span else " ends" if last in span else "")


def _text(part: Part, document: Document, name: str, joined: list[Joint], levels: Mapping[float, int]) -> Iterator[Markup]:
  for i, token in enumerate(part.tokens, part.start):
    for joint in joined:
      if i == joint.target.start:
        said = "the hole" if joint.kind == "hole" else "the candidates"
        yield _jump(f"{name}-{joint.kind}-to", f"{name}-{joint.kind}-from", f"↑ {said}")
    touching = [joint.kind for joint in joined if i in joint.origin or i in joint.target]
    yield _token(token, document.segment, levels[token.weight], touching)
    for joint in joined:
      if i == joint.origin[-1]:
        said = _preview(document, joint.target) if joint.kind == "hole" else "the one that was made"
        yield _jump(f"{name}-{joint.kind}-from", f"{name}-{joint.kind}-to", f"↓ {said}")


def _jump(own: str, other: str, text: str) -> Markup:
  return Markup('<a class="jump" id="{}" href="#{}">{}</a>').format(own, other, printable(text))


def _preview(document: Document, span: range) -> str:
  text = " ".join("".join(document.tokens[i].piece for i in span).split())
  return text if len(text) <= _PREVIEW else text[: _PREVIEW - 1] + "…"


def _token(token: Token, segment: int, level: int, touching: list[str]) -> Markup:
  classes = ["t", f"r-{token.role or 'none'}", f"w{level}", *touching]
  if token.reserved:
    classes.append("marker")
  if token.status == "err":
    classes.append("err")
  if token.beyond:
    classes.append("beyond")
  classes += [f"f-{flag}" for flag in token.flags]
  text = printable(token.piece)
  return Markup('<span class="{}" title="{}">{}</span>').format(" ".join(classes), facts(token, segment), escape(text))


def facts(token: Token, segment: int) -> str:
  """What is known of a token, for its tooltip, a kind of fact a line."""
  if token.role is None:
    target = "begins here: nothing in this row predicts it"
  else:
    target = f"role {token.role}, status {token.status}\nflags {' '.join(token.flags) or 'none'}\nweight {token.weight:.3g}"
  place = "its token stands in another row" if token.beyond else f"position {token.position}, segment {segment}"
  return f"{token.piece!r}  id {token.id}\n{target}\n{place}"
