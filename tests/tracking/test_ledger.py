from __future__ import annotations

from pathlib import Path

import pytest

from maxagent.errors import DataError
from maxagent.tracking.ledger import Ledger


class Clock:
  """A clock that stands still until it is moved."""

  def __init__(self) -> None:
    self.now = 100.0

  def __call__(self) -> float:
    return self.now

  def move(self, seconds: float) -> None:
    self.now += seconds


def test_idle_is_what_no_phase_covers() -> None:
  clock = Clock()
  ledger = Ledger(clock=clock)
  clock.move(1)
  with ledger.phase("step"):
    clock.move(5)
  clock.move(2)
  assert ledger.totals() == {"step": 5.0, "idle": 3.0}
  assert ledger.wall_seconds == 8.0


def test_nested_phases_count_to_the_inner_one_only() -> None:
  clock = Clock()
  ledger = Ledger(clock=clock)
  with ledger.phase("eval"):
    clock.move(1)
    with ledger.phase("compile"):
      clock.move(4)
      with ledger.phase("eval"):
        clock.move(2)
    clock.move(3)
  assert ledger.totals() == {"compile": 4.0, "eval": 6.0, "idle": 0.0}


def test_a_phase_that_raises_is_counted_and_closed() -> None:
  clock = Clock()
  ledger = Ledger(clock=clock)
  with pytest.raises(KeyError), ledger.phase("data"):
    clock.move(2)
    raise KeyError
  clock.move(1)
  assert ledger.totals() == {"data": 2.0, "idle": 1.0}


def test_totals_inside_an_open_phase_count_it_up_to_now() -> None:
  clock = Clock()
  ledger = Ledger(clock=clock)
  with ledger.phase("step"):
    clock.move(2)
    assert ledger.totals() == {"step": 2.0, "idle": 0.0}
    clock.move(3)
  assert ledger.totals()["step"] == 5.0


def test_a_resumed_run_adds_up(tmp_path: Path) -> None:
  clock = Clock()
  first = Ledger(clock=clock)
  with first.phase("step"):
    clock.move(5)
  clock.move(1)
  second = Ledger.from_dict(first.to_dict(), clock=clock)
  with second.phase("step"):
    clock.move(2)
  with second.phase("restore"):
    clock.move(1)
  assert second.totals() == {"step": 7.0, "restore": 1.0, "idle": 1.0}
  assert second.wall_seconds == 9.0
  second.save(tmp_path)
  assert Ledger.load(tmp_path).totals()["step"] == 7.0


def test_added_seconds_count_as_wall_time_and_never_as_idle() -> None:
  ledger = Ledger(clock=Clock())
  ledger.add("install", 40)
  ledger.add("install", 2)
  assert ledger.totals() == {"install": 42.0, "idle": 0.0}


def test_outer_phases_are_shown_first_and_never_counted_twice(tmp_path: Path) -> None:
  (tmp_path / "phases.jsonl").write_text('{"phase": "install", "seconds": 41.5}\n\n{"phase": "shards", "seconds": 3}\n')
  clock = Clock()
  ledger = Ledger(clock=clock)
  with ledger.phase("step"):
    clock.move(2)
  for _ in range(2):
    assert ledger.with_outer(tmp_path).totals() == {"install": 41.5, "shards": 3.0, "step": 2.0, "idle": 0.0}
  assert ledger.totals() == {"step": 2.0, "idle": 0.0}


@pytest.mark.parametrize("line", ["install 3", '{"phase": "x"}', '{"phase": "x", "seconds": "long"}', "[]"])
def test_a_broken_outer_phase_is_named_by_its_line(tmp_path: Path, line: str) -> None:
  (tmp_path / "phases.jsonl").write_text('{"phase": "install", "seconds": 1}\n' + line + "\n")
  with pytest.raises(DataError, match=r"phases\.jsonl, line 2"):
    Ledger().with_outer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"wall_seconds": 3}', '{"wall_seconds": 3, "phases": {"a": "b"}}'])
def test_a_broken_ledger_file_is_a_clear_error(tmp_path: Path, content: str) -> None:
  (tmp_path / "ledger.json").write_text(content)
  with pytest.raises(DataError, match="count anew"):
    Ledger.load(tmp_path)


def test_a_folder_without_a_ledger_starts_a_new_one(tmp_path: Path) -> None:
  assert set(Ledger.load(tmp_path).totals()) == {"idle"}


def test_the_table_ends_with_the_sum() -> None:
  ledger = Ledger.from_dict({"wall_seconds": 10, "phases": {"step": 6, "compile": 3}}, clock=Clock())
  rows = [line.split() for line in ledger.table().splitlines()]
  assert rows == [
    ["phase", "seconds", "share"],
    ["compile", "3.0", "30.0%"],
    ["step", "6.0", "60.0%"],
    ["idle", "1.0", "10.0%"],
    ["total", "10.0", "100.0%"],
  ]
