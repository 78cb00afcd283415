from __future__ import annotations

import pytest

from maxagent.tracking.shares import Reading, recorded, said, share_charts

PHASES = [(0.0, {"trace": 0.1, "web": 0.9}), (200.0, {"trace": 0.5, "web": 0.5}), (900.0, {"trace": 1.0, "web": 0.0})]
READINGS = [
  Reading(1, {"trace": 10.0, "web": 90.0}),
  Reading(2, {"trace": 20.0, "web": 180.0}),
  Reading(3, {"trace": 70.0, "web": 230.0}),
]


def test_shares_are_of_the_tokens_between_two_readings() -> None:
  content, _ = share_charts(PHASES, READINGS, [{"trace": 1.0, "web": 1.0}] * 3, steps=3, asked_of="content")
  trace, web, *_ = content.series
  assert (list(trace.tokens), list(trace.values)) == ([50, 150, 250], [0.1, 0.1, 0.5])
  assert list(web.values) == [0.9, 0.9, 0.5]


def test_what_is_asked_steps_where_a_phase_begins_and_ends_with_the_run() -> None:
  content, _ = share_charts(PHASES, READINGS, [{"trace": 1.0, "web": 1.0}] * 3, steps=6, asked_of="content")
  asked = content.series[2]
  assert asked.dashed and asked.label == "trace, asked"
  # 300 tokens in 3 steps: 6 steps read 600 and never reach the phase at 900.
  assert (list(asked.tokens), list(asked.values)) == ([0, 200, 200, 600], [0.1, 0.1, 0.5, 0.5])


def test_a_source_of_which_little_is_supervised_has_a_smaller_share_of_the_loss() -> None:
  supervised = [{"trace": 1.0, "web": 1.0}, {"trace": 0.5, "web": 1.0}, {"trace": 0.25, "web": 0.75}]
  _, chart = share_charts(PHASES, READINGS, supervised, steps=3, asked_of="content")
  assert list(chart.series[0].values) == pytest.approx([10 / 100, 5 / 95, 12.5 / 50])
  assert sum(series.values[2] or 0 for series in chart.series) == pytest.approx(1)


def test_where_nothing_is_supervised_there_is_a_gap() -> None:
  _, chart = share_charts(PHASES, READINGS, [{"trace": 0.0, "web": 0.0}] * 3, steps=3, asked_of="content")
  assert chart.series[0].last is None


def test_readings_are_taken_from_the_records_that_have_them() -> None:
  whole = {
    "mixture/realised/trace": 0.25,
    "mixture/realised/web": 0.75,
    "mixture/fill": 0.9,
    "mixture/added": 0.1,
    "tokens": 1000,
  }
  records = [
    {"step": 1, "tokens": 500, "train/loss": 2.0},
    {"step": 2, **whole},
    {"step": 3, **whole, "mixture/fill": None},
    {"event": "jump", "tokens": 7},
  ]
  assert recorded(records, ["trace", "web"]) == [Reading(2, {"trace": 200.0, "web": 600.0})]
  assert recorded(records, ["trace", "web", "code"]) == []


def test_what_is_asked_of_supervised_tokens_is_drawn_with_them() -> None:
  content, supervised = share_charts(PHASES, READINGS, [{"trace": 1.0, "web": 1.0}] * 3, steps=3, asked_of="supervised")
  assert [series.dashed for series in content.series] == [False, False] and "asked" not in content.note
  assert [series.dashed for series in supervised.series] == [False, False, True, True] and "dashed: asked" in supervised.note


def test_the_schedule_is_said_in_words() -> None:
  assert said(PHASES[:1], "content") == ["Asked of content tokens: trace 10.0%, web 90.0%."]
  assert said(PHASES[:2], "supervised")[1] == "Asked of supervised tokens from 200 on: trace 50.0%, web 50.0%."
