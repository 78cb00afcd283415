"""Line charts as inline SVG that follows the page: its fonts, its text colour, its light or dark theme.

matplotlib draws with one opaque stand-in colour per CSS expression; the stand-ins are then replaced by the expressions. So a
chart is drawn once and is right in both themes. Every id gets the chart's prefix, because ids are global in an HTML page.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from matplotlib.axes import Axes

# Inches, at 72 units each: near the width of a phone, so that a 10-unit label is a 10-pixel label there.
_SIZE = (4.5, 2.7)
_FONT_UNITS = 10
_MOST_POINTS = 240  # drawn per series; a chart is about 300 pixels wide
_SMOOTH_FROM = 40  # points; shorter series are drawn as they are
_RAW_LINES_UP_TO = 4  # series; the raw lines of more than that hide one another
_LOG_FROM = 30  # largest over smallest value; a linear axis would show only the beginning of a loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """One line: positions in tokens, values (None is a gap), an optional band from `low` to `high`."""

  label: str
  colour: str  # a CSS expression
  tokens: Sequence[float]
  values: Sequence[float | None]
  low: Sequence[float | None] | None = None
  high: Sequence[float | None] | None = None
  dashed: bool = False

  @property
  def last(self) -> float | None:
    """The last value that is a number."""
    return next((v for v in reversed(self.values) if v is not None), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
  """What one card of the report shows. `scale` is "auto" (logarithmic where values span a lot), "zero" (from 0),
  "share" (0% to 100%) or "percent" (as wide as the values)."""

  title: str
  series: tuple[Series, ...]
  note: str = ""
  scale: str = "auto"
  smooth: bool = False


def draw(chart: Chart, *, prefix: str) -> str:
  """The chart as one `<svg>` element; `prefix` must differ between the charts of a page."""
  import matplotlib as mpl
  from matplotlib.figure import Figure

  stand_ins = {"currentColor": "#010200", "var(--grid)": "#010201"}
  for series in chart.series:
    stand_ins.setdefault(series.colour, f"#0102{len(stand_ins):02x}")
  settings: Any = {"svg.fonttype": "none", "svg.hashsalt": prefix, "font.size": _FONT_UNITS, "axes.unicode_minus": False}
  with mpl.rc_context(settings):
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    for series in chart.series:
      _draw_series(axes, series, stand_ins[series.colour], chart)
    _dress(axes, chart, text=stand_ins["currentColor"], grid=stand_ins["var(--grid)"])
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
  return _inline(out.getvalue(), stand_ins, prefix=prefix, label=chart.title)


def is_smoothed(chart: Chart) -> bool:
  """Whether any line of the chart is a moving average."""
  return chart.smooth and any(len(s.values) >= _SMOOTH_FROM for s in chart.series)


def _draw_series(axes: Axes, series: Series, colour: str, chart: Chart) -> None:
  tokens, values = _thin(series.tokens, series.values)
  if series.low is not None and series.high is not None:
    axes.fill_between(series.tokens, _numbers(series.low), _numbers(series.high), color=colour, alpha=0.16, linewidth=0)
  if len([v for v in values if math.isfinite(v)]) < 2:
    axes.plot(tokens, values, color=colour, marker="o", markersize=5, linestyle="none")
    if series.low is not None and series.high is not None:
      axes.vlines(series.tokens, _numbers(series.low), _numbers(series.high), color=colour, linewidth=1.5)
    return
  if chart.smooth and len(series.values) >= _SMOOTH_FROM:
    if len(chart.series) <= _RAW_LINES_UP_TO:
      axes.plot(tokens, values, color=colour, linewidth=0.8, alpha=0.3)
    # Thinned once before: a window of a thirtieth of 100,000 records would make the average quadratic.
    tokens, values = _thin(series.tokens, series.values, most=4 * _MOST_POINTS)
    tokens, values = _thin(tokens, _moving_average(values))
  dots: dict[str, Any] = {"marker": "o", "markersize": 3.2} if len(values) <= 30 and not series.dashed else {}
  axes.plot(tokens, values, color=colour, linewidth=1.7, linestyle=(0, (3, 2)) if series.dashed else "-", **dots)


def _numbers(values: Sequence[float | None]) -> list[float]:
  return [math.nan if v is None else v for v in values]


def _thin(
  tokens: Sequence[float], values: Sequence[float | None], *, most: int = _MOST_POINTS
) -> tuple[list[float], list[float]]:
  """At most `most` points: means over neighbours, gaps left out of a mean.

  Two neighbours a point: tokens [1, 2, 3, 4], values [8, 6, None, 4] -> [1.5, 3.5], [7, 4].
  """
  size = math.ceil(len(values) / most) or 1
  numbers = _numbers(values)
  cuts = range(0, len(numbers), size)
  return [_mean(tokens[i : i + size]) for i in cuts], [_mean(numbers[i : i + size]) for i in cuts]


def _mean(values: Sequence[float]) -> float:
  finite = [v for v in values if math.isfinite(v)]
  return sum(finite) / len(finite) if finite else math.nan


def _moving_average(values: Sequence[float]) -> list[float]:
  """Means over about a thirtieth of the run around each point; the window narrows at the start, where losses fall fast.

  Half a window of one: [8, 6, 1, 3] -> [8, 5, 3.33, 2]. A gap stays a gap.
  """
  half = max(1, len(values) // 60)
  spans = [(max(0, i - half), i + min(half, i) + 1) for i in range(len(values))]
  return [_mean(values[a:b]) if math.isfinite(v) else math.nan for v, (a, b) in zip(values, spans, strict=True)]


def _dress(axes: Axes, chart: Chart, *, text: str, grid: str) -> None:
  from matplotlib.ticker import FuncFormatter, MaxNLocator

  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.spines["bottom"].set_color(grid)
  axes.grid(axis="y", color=grid, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(length=0, labelcolor=text, pad=5, which="both")
  axes.set_xlabel("tokens", color=text, labelpad=2, loc="right")
  axes.set_xlim(left=0, right=1.02 * max((t for s in chart.series for t in s.tokens), default=1.0) or 1.0)
  axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: compact(x)))
  _scale_values(axes, chart)


def _scale_values(axes: Axes, chart: Chart) -> None:
  from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

  if chart.scale == "share":
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
    return
  values = [v for s in chart.series for v in s.values if v is not None]
  if chart.scale == "auto" and values and min(values) > 0 and max(values) > _LOG_FROM * min(values):
    decades = math.log10(max(values) / min(values))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if decades < 3 else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
  else:
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if chart.scale == "zero":
      axes.set_ylim(bottom=0)
  axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g}%" if chart.scale == "percent" else compact(y)))


def compact(value: float, *, digits: int = 4) -> str:
  """A number as short as it stays readable: 1.25M, 30k, 2.5, 0.003, 2e-05."""
  for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= limit:
      return f"{value / limit:.{digits}g}{suffix}"
  return f"{value:.{min(digits, 3)}g}"


def _inline(svg: str, stand_ins: dict[str, str], *, prefix: str, label: str) -> str:
  """What HTML needs of matplotlib's document: no prolog, no global style, no sizes, ids that are this chart's own."""
  body = svg[svg.index("<svg") :]
  body = re.sub(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>", rf'<svg viewBox="\1" role="img" aria-label="{label}">', body, count=1)
  body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|font-family: [^;\"]*;?", "", body, flags=re.DOTALL)
  body = body.replace("xlink:href", "href")
  used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
  body = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body)
  body = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", body)
  for expression, stand_in in stand_ins.items():
    body = body.replace(stand_in, expression)
  return re.sub(r"\s*\n\s*", "\n", body).strip()
