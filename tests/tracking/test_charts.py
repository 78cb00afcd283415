from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from maxagent.tracking.charts import Chart, Series, compact, draw
from maxagent.tracking.curves import Curves, charts


def _chart(values: list[float | None], **kwargs: object) -> Chart:
  series = Series(
    label="a", colour="var(--series-0)", tokens=[10.0 * (n + 1) for n in range(len(values))], values=values, **kwargs
  )
  return Chart(title="A", series=(series,))


def test_a_chart_is_one_well_formed_svg_that_names_no_colour_of_its_own() -> None:
  svg = draw(_chart([3.0, 2.0, 1.0]), prefix="c0")
  assert ElementTree.fromstring(svg).tag == "svg"
  assert "var(--series-0)" in svg and "currentColor" in svg
  assert "#0102" not in svg
  assert "http" not in svg and "font-family" not in svg


def test_ids_of_two_charts_on_a_page_never_clash_and_every_reference_resolves() -> None:
  pages = [draw(_chart([3.0, 2.0, 1.0]), prefix=f"c{n}") for n in (0, 1)]
  ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in pages]
  assert ids[0] and not ids[0] & ids[1]
  for svg, own in zip(pages, ids, strict=True):
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= own


@pytest.mark.parametrize("values", [[1.0], [None, 1.0], [1.0, None]])
def test_a_single_point_is_a_dot_that_can_be_seen(values: list[float | None]) -> None:
  svg = draw(_chart(values), prefix="c")
  dots = re.findall(r"<use [^>]*var\(--series-0\)", svg)
  assert len(dots) == 1


def test_a_gap_breaks_the_line_and_nothing_says_nan() -> None:
  svg = draw(_chart([3.0, 2.5, None, 2.0, 1.5]), prefix="c")
  assert "nan" not in svg.lower()
  line = next(d for d in re.findall(r'<path d="([^"]+)"[^>]*stroke: var\(--series-0\)[^>]*>', svg) if d.count("L") == 2)
  assert line.count("M") == 2


def test_long_series_are_thinned_to_what_can_be_seen() -> None:
  svg = draw(_chart([1 + math.sin(n / 500) for n in range(50_000)]), prefix="c")
  assert len(svg) < 40_000


def test_a_band_is_drawn_between_low_and_high() -> None:
  plain = draw(_chart([0.1, 0.5]), prefix="c")
  banded = draw(_chart([0.1, 0.5], low=[0.0, 0.4], high=[0.2, 0.6]), prefix="c")
  assert "fill-opacity: 0.16" in banded and "fill-opacity: 0.16" not in plain


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [0.0, 1e9], [-1.0, 1.0], [1e-30, 1e30], [5.0] * 100])
def test_any_range_of_values_can_be_drawn(values: list[float | None]) -> None:
  for scale in ("auto", "zero", "share", "percent"):
    chart = Chart(title="A", series=_chart(values).series, scale=scale, smooth=True)
    assert draw(chart, prefix="c").startswith("<svg")


def test_numbers_are_short() -> None:
  assert [compact(v) for v in (0, 2.5, 0.003, 2e-5, 999, 30_000, 1_250_000, 3e12)] == [
    "0", "2.5", "0.003", "2e-05", "999", "30k", "1.25M", "3T",
  ]  # fmt: skip


def test_only_metrics_that_occur_make_a_chart() -> None:
  records = [{"step": 1, "tokens": 8, "seconds": 1, "train/loss": 2.0, "note": "text", "train/grad_norm": None}]
  assert [c.title for c in charts(Curves(records))] == ["Training loss by source"]


def test_strings_booleans_and_events_are_no_points() -> None:
  records = [
    {"step": 1, "tokens": 8, "a": "text"},
    {"step": 2, "tokens": 16, "a": True},
    {"step": 3, "tokens": 24, "a": 3.0},
    {"step": 4, "tokens": 32, "a": None},
    {"event": "jump", "tokens": 40, "a": 9.0},
  ]
  assert Curves(records).points("a") == ([24.0, 32.0], [3.0, None])


def test_a_band_needs_both_ends_at_every_point() -> None:
  whole = {"tokens": 8, "s": 0.5, "s_low": 0.4, "s_high": 0.6}
  assert Curves([whole]).series("s", "s", "c", band=True).low == [0.4]
  assert Curves([whole, {"tokens": 9, "s": 0.5}]).series("s", "s", "c", band=True).low is None
