from __future__ import annotations

import pytest
from scipy.stats import binomtest

from maxagent.evals.agentic import Rate, summarize
from maxagent.sampling.episodes import EpisodeResult, Fault
from maxagent.traces.schema import Segment, Trace


def _result(
  family: str = "kv", *, kind: str = "clean", success: bool = True, fault: bool = False, **counts: int
) -> EpisodeResult:
  trace = Trace(id="t", family=family, segments=(Segment(role="goal", text="g"),))
  numbers = {"turns": 4, "actions": 4, "invalid_calls": 0, "failed_actions": 0, "repeated_errors": 0} | counts
  forced = Fault(step=1, kind="wrong_tool", action="call a {}") if fault else None
  return EpisodeResult(trace=trace, kind=kind, success=success, ended="answered", fault=forced, **numbers)


def test_the_interval_of_nine_in_ten_is_wilsons():
  # By hand: z^2 = 3.841459; centre = (0.9 + 0.1920729) / 1.3841459 = 0.7889868;
  # half = 1.959964 * sqrt(0.009 + 0.0096036) / 1.3841459 = 0.1931...
  low, high = Rate(9, 10).interval()
  assert (low, high) == pytest.approx((0.595850, 0.982124), abs=1e-5)


@pytest.mark.parametrize(("hits", "total"), [(0, 200), (200, 200), (180, 200), (1, 3), (199, 400)])
def test_intervals_equal_scipys(hits: int, total: int):
  expected = binomtest(hits, total).proportion_ci(method="wilson")
  assert Rate(hits, total).interval() == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_clean_episodes_are_counted_apart_from_recovery_ones():
  results = [_result(), _result(success=False), _result(kind="recovery", fault=True), _result(kind="recovery", fault=True)]
  metrics = summarize(results)
  assert metrics["eval/success"] == metrics["eval/kv/success"] == 0.5
  assert metrics["eval/recovery"] == metrics["eval/kv/recovery"] == 1.0
  assert metrics["eval/success_low"] < 0.5 < metrics["eval/success_high"]


def test_an_episode_without_its_fault_is_not_recovered_whatever_its_end():
  metrics = summarize([_result(kind="recovery", success=True, fault=False), _result(kind="recovery", fault=True)])
  assert metrics["eval/recovery"] == 0.5 and metrics["eval/kv/fault_missed"] == 1


def test_repeated_errors_are_a_share_of_failed_actions_and_absent_without_any():
  metrics = summarize([_result(failed_actions=3, repeated_errors=1), _result("files", failed_actions=1, repeated_errors=1)])
  assert metrics["eval/repeated_error"] == 0.5
  assert metrics["eval/kv/repeated_error"] == pytest.approx(1 / 3) and metrics["eval/files/repeated_error"] == 1
  assert "eval/repeated_error" not in summarize([_result()])


def test_every_family_has_its_own_rates_and_counts():
  metrics = summarize([_result(invalid_calls=2), _result("files", turns=6)])
  assert metrics["eval/kv/invalid_call"] == 0.5 and metrics["eval/files/invalid_call"] == 0
  assert metrics["eval/files/turns"] == 6 and metrics["eval/files/turn_limit"] == 0 and metrics["eval/kv/context_full"] == 0
