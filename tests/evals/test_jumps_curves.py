"""Logs in: which metrics, which points, how many items behind a rate, who is whose partner."""

import math
import pathlib

import numpy as np
import pytest

from maxagent.errors import DataError
from maxagent.evals import jumps
from maxagent.evals.jumps import curves, names


@pytest.mark.parametrize(
  ("score", "others", "partner"),
  [
    ("eval/task/accuracy", ["eval/task/log_prob", "eval/other/log_prob"], "eval/task/log_prob"),
    ("eval/kv/recovery", ["eval/kv/log_prob", "eval/kv/recovery_log_prob"], "eval/kv/recovery_log_prob"),
    ("eval/kv/solved_all", ["eval/kv/turns", "eval/kv/bits_per_byte"], "eval/kv/bits_per_byte"),
    ("mmlu_acc", ["mmlu_loss", "arc_loss"], "mmlu_loss"),
    ("arc/acc,none", ["arc/acc_stderr,none", "arc/bits_per_byte,none"], "arc/bits_per_byte,none"),
    ("eval/success", ["eval/loss/source/web"], None),
    ("eval/task/log_prob", ["eval/task/loss"], None),
  ],
)
def test_partners_share_the_prefix_of_their_score(score: str, others: list[str], partner: str | None):
  assert names.partner_of(score, [*others, score]) == partner


@pytest.mark.parametrize(
  ("name", "continuous", "more_is_better"),
  [
    ("eval/task/accuracy", False, True), ("eval/task/log_prob", True, True), ("eval/loss/source/web", True, False),
    ("eval/kv/repeated_error", False, False), ("eval/loss_of_control/accuracy", False, True), ("bpb", True, False),
  ],
)  # fmt: skip
def test_a_name_says_what_kind_of_metric_it_is(name: str, continuous: bool, more_is_better: bool):
  assert (names.is_continuous(name), names.more_is_better(name)) == (continuous, more_is_better)


def wilson(hits: int, n: int) -> tuple[float, float]:
  z2, p = 1.959963984540054**2, hits / n
  half = math.sqrt(z2) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
  return (p + z2 / (2 * n) - half) / (1 + z2 / n), (p + z2 / (2 * n) + half) / (1 + z2 / n)


@pytest.mark.parametrize("hits", [1, 37, 200, 399])
def test_the_items_behind_a_rate_follow_from_what_stands_beside_it(hits: int):
  rate, (low, high) = hits / 400, wilson(hits, 400)
  assert curves.stated_items({"acc": rate, "acc_low": low, "acc_high": high}, "acc") == pytest.approx(400, rel=1e-3)
  error = math.sqrt(rate * (1 - rate) / 399)
  assert curves.stated_items({"acc,none": rate, "acc_stderr,none": error}, "acc,none") == pytest.approx(400, rel=1e-3)
  assert curves.stated_items({"acc": rate, "acc_items": 400}, "acc") == 400
  assert curves.stated_items({"acc": rate}, "acc") is None


def test_the_items_behind_a_rate_follow_from_its_values():
  assert curves.denominator(np.array([0.0, 0.0025, 0.3175, 1.0])) == 400
  assert curves.denominator(np.array([0.3333, 0.6667, 0.0])) == 3  # rounded to four decimals
  assert curves.denominator(np.array([0.0, 1.0])) is None


def test_clocks_and_bounds_are_no_metrics():
  record = {
    "step": 1,
    "tokens": 2,
    "seconds": 3.0,
    "acc": 0.5,
    "acc_low": 0.4,
    "acc_high": 0.6,
    "name": "x",
    "on": True,
    "turn_count": 3,
  }
  assert jumps.metric_names([record]) == ["acc", "turn_count"]


def test_scores_in_percent_are_read_as_shares():
  records = [{"step": 1, "acc": 0.0, "acc_stderr": 0.0, "loss": 3.0}, {"step": 2, "acc": 40.0, "acc_stderr": 2.0, "loss": 2.5}]
  shares, percent = jumps.as_shares(records)
  assert percent == ["acc"] and shares[1] == {"step": 2, "acc": 0.4, "acc_stderr": 0.02, "loss": 2.5}


def test_a_log_is_read_with_nan_events_headers_and_a_torn_end(tmp_path: pathlib.Path):
  path = tmp_path / "log.jsonl"
  path.write_text(
    '{"config": 1}\n{"step": 1, "a": NaN}\n\n{"event": "jump", "step": 1}\n{"step": 2, "a": 0.5}\n{"step": 3, "a"'
  )
  assert [record["step"] for record in jumps.read_records(path)] == [1, 2]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b'{"step": 1}\n{"step": 2\n{"step": 3}\n', "line 2: not JSON"),
    (b"[1, 2]\n", "line 1: a JSON list"),
    (b'{"loss": 1}\n', "holds no record with a step"),
    (b"", "holds no record with a step"),
    (b"\xff\xfe\x00\n\x00\n", "line 1: not JSON"),
  ],
)
def test_a_bad_log_is_refused_by_line(content: bytes, message: str, tmp_path: pathlib.Path):
  path = tmp_path / "log.jsonl"
  path.write_bytes(content)
  with pytest.raises(DataError, match=message):
    jumps.read_records(path)


def test_evaluations_are_watched_or_else_all_that_is_measured():
  assert names.watched(["train/loss", "eval/kv/success"]) == ["eval/kv/success"]
  assert names.watched(["train/loss", "train/data_digest"]) == ["train/loss"]


def test_a_log_that_is_not_there_is_named(tmp_path: pathlib.Path):
  with pytest.raises(DataError, match=r"absent\.jsonl"):
    jumps.read_records(tmp_path / "absent.jsonl")
