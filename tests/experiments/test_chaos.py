"""The harness of kills: a short form of it in CI, and that it sees what it looks for."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
KILLS = 20


def chaos(workdir: pathlib.Path, data: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
  command = [sys.executable, "experiments/chaos.py", f"--workdir={workdir}", f"--data={data}", *arguments]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_twenty_kills_tear_no_checkpoint_and_leave_the_curve_as_it_was(tmp_path, small_data, capsys):
  seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10_000))
  began = time.monotonic()
  # Two processes cost twice as much, so most of the kills are of one; `make chaos` kills four.
  for processes, kills in ((1, KILLS - 4), (2, 4)):
    done = chaos(tmp_path, small_data, f"--kills={kills}", f"--processes={processes}", f"--seed={seed}")
    assert done.returncode == 0, f"KILL_SEED={seed}\n{done.stdout}\n{done.stderr}"
  with capsys.disabled():
    print(f"\nKILL_SEED={seed}, {time.monotonic() - began:.0f} s\n{done.stdout[done.stdout.index('processes   import') :]}")
  entries = [json.loads(line) for line in (tmp_path / "kills.jsonl").read_text().splitlines()]
  kills = [entry for entry in entries if entry["kind"] == "kill"]
  assert len(kills) == KILLS and {entry["processes"] for entry in kills} == {1, 2}
  assert len({entry["hit"] for entry in kills}) >= 5
  assert sum(entry["kind"] == "run" for entry in entries) >= 2

  # Begun again, it has nothing left to do.
  again = chaos(tmp_path, small_data, f"--kills={KILLS - 4}", "--processes=1", f"--seed={seed}")
  assert again.returncode == 0 and "kill 0" not in again.stdout
  # With another seed, or other code, its reference would prove nothing.
  assert "name another --workdir" in chaos(tmp_path, small_data, f"--seed={seed + 1}").stderr


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch):
  """The module, without running it."""
  monkeypatch.syspath_prepend(str(ROOT / "experiments"))
  import chaos

  return chaos


def finished(harness, folder: pathlib.Path, *, loss: float = 2.0, weight: float = 1.0, last: int | None = None) -> object:
  """A run of the harness's steps as it would lie on disk."""
  import numpy as np
  from jax import device_put

  from maxagent.checkpoint import Checkpoints

  folder.mkdir()
  steps = range(1, (last or harness.STEPS) + 1)
  records = ({"step": step, "tokens": step, "seconds": time.time(), "train/loss": loss + step} for step in steps)
  (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
  checkpoints = Checkpoints(folder / "checkpoints", keep=2)
  state = {"params": {"w": device_put(np.full((64, 64), weight, np.float32))}}
  for step in (harness.STEPS - harness.SAVE_EVERY, harness.STEPS):
    checkpoints.save(step, state, data_state={}, config_json="{}", metadata={})
  checkpoints.close()
  return harness.Run(folder, [], 1)


def test_runs_that_differ_only_by_the_clock_are_the_same_and_any_other_difference_is_a_violation(harness, tmp_path):
  log = harness.Log(tmp_path / "kills.jsonl")
  runs = harness.Chaos(tmp_path, log, [], processes=1, seed=0)
  folder = tmp_path / "processes-1"
  folder.mkdir()
  finished(harness, folder / "reference")
  runs._require_same(finished(harness, folder / "equal"))
  for name, change, told in (
    ("loss", {"loss": 2.0 + 1e-15}, "step 1 differs"),
    ("lost", {"last": harness.STEPS - 1}, "its records are of steps"),
    ("weight", {"weight": 1.0 + 1e-7}, "arrays differ from the reference: .*params/w"),
  ):
    with pytest.raises(harness.Violation, match=told):
      runs._require_same(finished(harness, folder / name, **change))


def test_a_torn_checkpoint_is_a_violation(harness, tmp_path):
  run = finished(harness, tmp_path / "run")
  (run.workdir / "output-0.txt").write_text("")
  run._said, run._newest_at_start = 0, harness.STEPS
  run.require_whole()
  next((run.checkpoints / "55/digests").glob("part-*")).unlink()
  with pytest.raises(harness.Violation, match=r"torn checkpoint: step 55: .* holds no digests"):
    run.require_whole()


def test_a_run_that_went_on_from_another_step_than_its_newest_is_a_violation(harness, tmp_path):
  run = finished(harness, tmp_path / "run")
  (run.workdir / "output-0.txt").write_text("going on from step 55\n")
  run._said, run._newest_at_start = 0, harness.STEPS
  with pytest.raises(harness.Violation, match="went on from step 55; step 60 was there"):
    run.require_whole()


def test_a_log_that_was_cut_short_is_gone_on_with(harness, tmp_path):
  log = harness.Log(tmp_path / "kills.jsonl")
  log.add(kind="kill", processes=1, number=0, hit="step", violation=None)
  with open(tmp_path / "kills.jsonl", "a") as file:
    file.write('{"kind": "kill", "processes": 1, "num')
  again = harness.Log(tmp_path / "kills.jsonl")
  assert [entry["number"] for entry in again.of("kill", 1)] == [0]
  again.add(kind="kill", processes=1, number=1, hit="save", violation="torn")
  assert len(harness.Log(tmp_path / "kills.jsonl").entries) == 2
  assert [line.split()[-1] for line in harness.table(again).splitlines()] == ["violated", "1"]
