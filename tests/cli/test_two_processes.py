"""`maxagent train` in two processes at once, on one machine."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from maxagent import config as configs
from maxagent.checkpoint import catalog, verify
from maxagent.tracking.writers import read_metrics

pytestmark = pytest.mark.cluster
ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMES = ("seconds", "train/tokens_per_second")


def _start(workdir: pathlib.Path, arguments: list[str], processes: int) -> list[subprocess.Popen[str]]:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  flags = f"--xla_force_host_platform_device_count={8 // processes} --xla_cpu_collective_call_terminate_timeout_seconds=600"
  shared = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes), "XLA_FLAGS": flags}
  command = [sys.executable, "-m", "maxagent.cli.main", "train", f"--workdir={workdir}", *arguments]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
  return [
    subprocess.Popen(command, cwd=ROOT, env=shared | {"JAX_PROCESS_ID": str(process)}, **pipes) for process in range(processes)
  ]


def _ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
  outputs = [process.communicate(timeout=400)[0] for process in processes]
  return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def _curve(workdir: pathlib.Path) -> list[dict[str, float]]:
  return [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(workdir / "metrics.jsonl")]


def _stop_after_three_steps(workdir: pathlib.Path, arguments: list[str], count: int) -> None:
  """Tells the last of so many processes to stop once three steps are recorded."""
  processes = _start(workdir, arguments, count)
  records = workdir / "metrics.jsonl"
  while all(p.poll() is None for p in processes) and not (records.exists() and records.read_bytes().count(b"\n") >= 3):
    time.sleep(0.05)
  processes[-1].send_signal(signal.SIGTERM)
  ends = _ends(processes)
  assert [code for code, _ in ends] == [75] * count, ends


@pytest.mark.timeout(900)
def test_two_processes_write_one_run_and_stop_at_one_step_when_one_of_them_is_told_to(
  smoke_arguments: list[str], tmp_path: pathlib.Path
):
  together, alone = tmp_path / "together", tmp_path / "alone"
  _stop_after_three_steps(together, smoke_arguments, 2)
  ends = _ends(_start(together, smoke_arguments, 2))
  assert [code for code, _ in ends] == [0, 0], ends
  assert "report:" in ends[0][1] and "report:" not in ends[1][1]
  ends = _ends(_start(alone, smoke_arguments, 1))
  assert ends[0][0] == 0, ends
  ours, theirs = _curve(together), _curve(alone)
  assert [record["step"] for record in ours] == list(range(1, 21))
  for one, other in zip(ours, theirs, strict=True):
    assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5)
    assert one["train/supervised_tokens"] == other["train/supervised_tokens"]
    assert one["train/data_digest"] == other["train/data_digest"]


@pytest.mark.timeout(900)
def test_a_run_saved_by_two_processes_goes_on_in_one_and_the_other_way_round_over_longer_rows(
  smoke_arguments: list[str], tmp_path: pathlib.Path
):
  # 1,024 tokens a step: rows become longer with step 8, after the stop or before it.
  arguments = [*smoke_arguments, "--config.data.lengths=((7000.0, 256),)", "--config.mesh.context=2"]
  curves = []
  for before, after in ((2, 1), (1, 2)):
    workdir = tmp_path / f"{before}-{after}"
    _stop_after_three_steps(workdir, arguments, before)
    ends = _ends(_start(workdir, arguments, after))
    assert [code for code, _ in ends] == [0] * after, ends
    curves.append(_curve(workdir))
  for one, other in zip(*curves, strict=True):
    assert one["train/data_digest"] == other["train/data_digest"]
    assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5)
  assert len(curves[0]) == 20 and len({record["train/data_digest"] for record in curves[0]}) == 20


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2, 4])
def test_sigterm_to_one_process_makes_all_save_one_step_at_once_and_exit_75(
  smoke_arguments: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], count: int
):
  endless = [
    "--config.training.steps=100000",
    "--config.checkpoint.every_steps=100000",
    "--config.evaluation.every_steps=100000",
  ]
  processes = _start(tmp_path, [*smoke_arguments, *endless], count)
  records = tmp_path / "metrics.jsonl"
  while all(p.poll() is None for p in processes) and not (records.exists() and records.read_bytes().count(b"\n") >= 5):
    time.sleep(0.01)
  told_at, told = time.time(), records.read_bytes().count(b"\n")
  processes[-1].send_signal(signal.SIGTERM)
  ends = _ends(processes)
  gone = time.time() - told_at
  assert [code for code, _ in ends] == [75] * count, ends
  (found,) = verify(tmp_path / "checkpoints")  # every process wrote its part of the one step, or it would not be whole
  (entry,) = catalog(tmp_path / "checkpoints")
  assert found.good and entry.processes == count and entry.saved_at is not None
  assert f"told to stop: saved step {found.step}" in ends[0][1]
  # The news travels with the step after the one being computed, whose own record is read a step later; the rest of the bound
  # is for records written between the count and the signal.
  saved = entry.saved_at - told_at
  with capsys.disabled():
    print(
      f"\n{count} processes: told after record {told}, saved step {found.step} {saved:.2f} s later, gone after {gone:.2f} s"
    )
  assert told < found.step <= told + 10
  assert saved < 30  # this machine may be busy; the figure is printed


@pytest.mark.timeout(900)
def test_a_process_that_stops_answering_ends_the_run_for_a_retry_with_the_stacks_of_the_others(
  smoke_arguments: list[str], tmp_path: pathlib.Path
):
  endless = ["--config.training.steps=100000", "--config.evaluation.every_steps=100000", "--config.training.hang_seconds=6.0"]
  processes = _start(tmp_path, [*smoke_arguments, *endless], 2)
  records = tmp_path / "metrics.jsonl"
  while all(p.poll() is None for p in processes) and not (records.exists() and records.read_bytes().count(b"\n") >= 3):
    time.sleep(0.05)
  processes[1].send_signal(signal.SIGSTOP)
  output = processes[0].communicate(timeout=120)[0]
  processes[1].kill()
  processes[1].communicate()
  assert processes[0].returncode == 75, output
  (stacks,) = (tmp_path / "hangs").rglob("stacks-*.txt")
  assert "loop.py" in stacks.read_text()


def test_all_processes_refuse_a_workdir_that_holds_another_run(smoke_arguments: list[str], tmp_path: pathlib.Path):
  (tmp_path / "config.json").write_text(configs.to_json(configs.Config(name="other")))
  ends = _ends(_start(tmp_path, smoke_arguments, 2))
  assert [code for code, _ in ends] == [2, 2], ends
  assert all("holds another run" in output for _, output in ends)
