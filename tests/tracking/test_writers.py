from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxagent.errors import DataError
from maxagent.tracking.writers import MetricsWriter, read_metrics


def _write(workdir: Path, steps: range, *, resume_step: int | None = None) -> MetricsWriter:
  with MetricsWriter(workdir, resume_step=resume_step) as writer:
    for step in steps:
      writer.write(step, {"train/loss": 1 / step}, tokens=10 * step, seconds=0.5 * step)
  return writer


def _steps(workdir: Path) -> list[int]:
  return [r["step"] for r in read_metrics(workdir / "metrics.jsonl")]


def test_a_record_holds_step_tokens_seconds_and_every_metric_on_one_line(tmp_path: Path) -> None:
  with MetricsWriter(tmp_path) as writer:
    writer.write(7, {"train/loss": 2.25, "eval/success": 0.5}, tokens=57344, seconds=3.125)
  line = (tmp_path / "metrics.jsonl").read_text()
  assert line == '{"step": 7, "tokens": 57344, "seconds": 3.125, "train/loss": 2.25, "eval/success": 0.5}\n'


def test_a_record_can_be_read_before_the_writer_is_closed(tmp_path: Path) -> None:
  writer = MetricsWriter(tmp_path)
  writer.write(1, {"a": 1.0}, tokens=1, seconds=1)
  assert _steps(tmp_path) == [1]
  writer.close()


def test_a_step_is_written_once_and_never_backwards(tmp_path: Path) -> None:
  with MetricsWriter(tmp_path) as writer:
    writer.write(5, {}, tokens=1, seconds=1)
    for step in (5, 4):
      with pytest.raises(DataError, match=f"step {step} was given after step 5"):
        writer.write(step, {}, tokens=1, seconds=1)
  assert _steps(tmp_path) == [5]


def test_resume_keeps_the_records_up_to_the_restored_step_and_goes_on(tmp_path: Path) -> None:
  _write(tmp_path, range(1, 10))
  before = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
  writer = _write(tmp_path, range(7, 12), resume_step=6)
  assert writer.cut_records == 3
  assert _steps(tmp_path) == list(range(1, 12))
  assert (tmp_path / "metrics.jsonl").read_bytes().splitlines()[:6] == before[:6]


def test_a_resumed_writer_knows_the_last_step(tmp_path: Path) -> None:
  _write(tmp_path, range(1, 4))
  with MetricsWriter(tmp_path, resume_step=3) as writer:
    assert writer.last_step == 3
    with pytest.raises(DataError):
      writer.write(3, {}, tokens=1, seconds=1)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 60))
def test_a_line_torn_at_any_byte_is_dropped_counted_and_costs_no_whole_record(tmp_path_factory, cut: int) -> None:
  folder = tmp_path_factory.mktemp("torn")
  whole = json.dumps({"step": 1, "tokens": 1, "seconds": 1}) + "\n"
  torn = json.dumps({"step": 2, "tokens": 2, "seconds": 2, "train/loss": 0.123456789012345})[:cut]
  (folder / "metrics.jsonl").write_text(whole + torn)
  assert _steps(folder) == [1]
  writer = _write(folder, range(2, 4), resume_step=5)
  assert writer.torn_lines == 1
  assert _steps(folder) == [1, 2, 3]


def test_a_new_run_moves_older_records_aside_and_loses_none(tmp_path: Path) -> None:
  _write(tmp_path, range(1, 4))
  _write(tmp_path, range(1, 3))
  _write(tmp_path, range(1, 2))
  assert _steps(tmp_path) == [1]
  assert [r["step"] for r in read_metrics(tmp_path / "metrics.before-1.jsonl")] == [1, 2, 3]
  assert [r["step"] for r in read_metrics(tmp_path / "metrics.before-2.jsonl")] == [1, 2]


def test_numbers_that_json_does_not_know_are_written_as_null(tmp_path: Path) -> None:
  with MetricsWriter(tmp_path) as writer:
    writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5}, tokens=1, seconds=1)

  def refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")

  record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
  assert [record[k] for k in "abcd"] == [None, None, None, 1.5]


def test_a_metric_may_not_be_named_like_a_field_of_the_record(tmp_path: Path) -> None:
  with MetricsWriter(tmp_path) as writer, pytest.raises(DataError, match="'tokens'"):
    writer.write(1, {"tokens": 3.0}, tokens=1, seconds=1)


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
  value = 0.1 + 0.2
  with MetricsWriter(tmp_path) as writer:
    writer.write(1, {"loss": value}, tokens=1, seconds=1)
  assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] == value


@pytest.mark.parametrize("line", ["{broken", "[1]", '{"tokens": 3}', '{"step": "3"}', "", "\x00\x00", b"\xff\xfe"])
def test_a_damaged_line_is_named_by_its_number(tmp_path: Path, line: str | bytes) -> None:
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"step": 1}\n' + (line if isinstance(line, bytes) else line.encode()) + b"\n")
  with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
    read_metrics(path)


def test_missing_metrics_are_a_clear_error(tmp_path: Path) -> None:
  with pytest.raises(DataError, match=r"cannot read .*metrics\.jsonl"):
    read_metrics(tmp_path / "metrics.jsonl")


def test_event_records_are_kept_on_resume_and_need_no_step(tmp_path: Path) -> None:
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"event": "jump", "curve": "x"}\n{"step": 2}\n')
  _write(tmp_path, range(2, 3), resume_step=1)
  assert [r.get("event", r.get("step")) for r in read_metrics(path)] == [1, "jump", 2]


def test_tensorboard_events_are_written_beside_the_records(tmp_path: Path) -> None:
  _write(tmp_path, range(1, 4))
  events = list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
  assert len(events) == 1
  assert b"train/loss" in events[0].read_bytes()
