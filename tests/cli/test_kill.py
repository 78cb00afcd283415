"""kill -9 at random moments. `KILLS=50 make test-slow` tries longer; the seed is printed."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from maxagent.tracking.writers import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMES = ("seconds", "train/tokens_per_second")


def _start(workdir: pathlib.Path, arguments: list[str]) -> subprocess.Popen[bytes]:
  command = [sys.executable, "-m", "maxagent.cli.main", "train", f"--workdir={workdir}", *arguments]
  return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _finish(workdir: pathlib.Path, arguments: list[str]) -> float:
  began = time.monotonic()
  output, _ = (process := _start(workdir, arguments)).communicate(timeout=600)
  assert process.returncode == 0, output.decode()
  return time.monotonic() - began


@pytest.mark.timeout(1800)
def test_kill_9_at_random_moments_leaves_the_curve_of_an_uninterrupted_run(
  small_data: pathlib.Path, smoke_arguments: list[str], tmp_path: pathlib.Path
):
  kills, seed = int(os.environ.get("KILLS", 2)), int(os.environ.get("KILL_SEED", time.time_ns() % 10_000))
  print(f"KILLS={kills} KILL_SEED={seed}")
  draw = random.Random(seed)
  whole_seconds = _finish(tmp_path / "whole", smoke_arguments)
  for _ in range(kills):
    process = _start(tmp_path / "killed", smoke_arguments)
    time.sleep(draw.uniform(0.2, 1.0) * whole_seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  _finish(tmp_path / "killed", smoke_arguments)
  whole, killed = (
    [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(tmp_path / name / "metrics.jsonl")]
    for name in ("whole", "killed")
  )
  assert [record["step"] for record in killed] == list(range(1, 21))
  assert killed == whole
