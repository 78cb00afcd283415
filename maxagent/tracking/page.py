"""What every page has in common: one look, charts as cards, text of unknown origin that is shown and never obeyed."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxagent.tracking import charts, palette, turns

if TYPE_CHECKING:
  import jinja2


def render(template: str, context: Mapping[str, Any]) -> bytes:
  """A page of one of this folder's templates, in UTF-8; beside the context it knows the palette of both themes."""
  css = {f"css_{theme}": palette.css_variables(theme) for theme in ("light", "dark")}
  return _environment().get_template(template).render(css | dict(context)).encode()


@functools.cache
def _environment() -> jinja2.Environment:
  import jinja2

  return jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, finalize=_safe,
    trim_blocks=True, lstrip_blocks=True,
  )  # fmt: skip


def _safe(value: Any) -> Any:
  """What a template prints of a value: text of unknown origin without control characters; our own SVG as it is."""
  return turns.printable(value, longest=len(value)) if type(value) is str else value


def cards(made: Sequence[charts.Chart]) -> list[dict[str, Any]]:
  """Charts, drawn, as the pages' figures show them."""
  import markupsafe

  drawn = []
  for number, chart in enumerate(made):
    note = chart.note + (" Moving average." if charts.is_smoothed(chart) else "")
    svg = markupsafe.Markup(charts.draw(chart, prefix=f"chart{number}"))
    legend = [{"label": s.label, "colour": s.colour, "dashed": s.dashed, "last": _last(s, chart)} for s in chart.series]
    drawn.append({"title": chart.title, "note": note.strip(), "svg": svg, "legend": legend})
  return drawn


def _last(series: charts.Series, chart: charts.Chart) -> str:
  if series.last is None:
    return ""
  return f"{series.last:.1%}" if chart.scale in ("share", "percent") else charts.compact(series.last, digits=3)
