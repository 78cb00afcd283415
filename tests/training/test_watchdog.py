"""A process that stops answering ends the run within the time allowed, with the stacks of all others."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from maxagent.training.watchdog import Watchdog

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 6.0

PROCESS = textwrap.dedent("""
  import pathlib, sys, time
  import jax, jax.numpy as jnp
  from jax.experimental import multihost_utils
  from maxagent.parallel import processes
  from maxagent.training.watchdog import Watchdog

  workdir, seconds, task = pathlib.Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
  processes.initialize()

  def endless_steps():
    step = 0
    while True:
      multihost_utils.process_allgather(jnp.ones(4))
      step += 1
      if step == 3:
        (workdir / f"going-{jax.process_index()}").touch()
      time.sleep(0.02)

  with Watchdog(workdir, seconds=seconds):
    if task == "endless":
      endless_steps()
    elif jax.process_index():  # a slow step of one, while the other is done: neither is a hang
      time.sleep(2 * seconds)
  time.sleep(0 if jax.process_index() else 2.5 * seconds)
""")


def start(workdir: pathlib.Path, count: int, task: str) -> list[subprocess.Popen[str]]:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  own = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "PYTHONPATH": str(ROOT)}
  own["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
  command = [sys.executable, "-c", PROCESS, str(workdir), str(SECONDS), task]
  return [
    subprocess.Popen(command, env=os.environ | own | {"JAX_PROCESS_ID": str(i)}, stderr=subprocess.PIPE, text=True)
    for i in range(count)
  ]


@pytest.mark.cluster
@pytest.mark.parametrize("blow", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("victim", [1, 2])
def test_a_process_that_stops_answering_ends_the_run_for_a_retry_with_the_stacks_of_all_others(tmp_path, capsys, victim, blow):
  started = start(tmp_path, 3, "endless")
  try:
    while not all((tmp_path / f"going-{i}").exists() for i in range(3)):
      assert all(process.poll() is None for process in started), [p.communicate() for p in started if p.poll() is not None]
      time.sleep(0.05)
    started[victim].send_signal(blow)
    struck = time.monotonic()
    others = [process for i, process in enumerate(started) if i != victim]
    told = [process.communicate(timeout=60)[1] for process in others]
    seconds = time.monotonic() - struck
  finally:
    for process in started:
      process.kill()
      process.communicate()
  with capsys.disabled():
    print(f"\n{blow.name} to process {victim}: all others had left {seconds:.1f} s later; {SECONDS:g} s were allowed")
  assert [process.returncode for process in others] == [75, 75], told
  (folder,) = (tmp_path / "hangs").iterdir()
  assert sorted(path.name for path in folder.iterdir()) == [f"stacks-{i}.txt" for i in range(3) if i != victim]
  for path in folder.iterdir():
    assert f"process {victim} of 3 gave no sign for {SECONDS * 4 / 6:.3g} s" in path.read_text()
  # A stopped process leaves the others where they were; a dead one breaks their collective, and they wait to learn why.
  where = "in endless_steps" if blow == signal.SIGSTOP else "in __exit__"
  assert any(where in path.read_text() for path in folder.iterdir())
  if blow == signal.SIGKILL:
    assert any("seeing whether another process has died" in text for text in told)
  assert all("run the same command to go on" in text for text in told)
  assert seconds < 5 * SECONDS  # 1.6 times by design; a busy machine keeps the looks waiting


@pytest.mark.cluster
def test_a_slow_process_and_one_that_has_ended_raise_no_alarm(tmp_path):
  ends = [(process.communicate(timeout=120)[1], process.returncode) for process in start(tmp_path, 2, "uneven")]
  assert [code for _, code in ends] == [0, 0], ends
  assert not (tmp_path / "hangs").exists() and (tmp_path / "alive/1").read_text() == "ended"


@pytest.mark.parametrize("seconds", [None, 1.0])
def test_a_process_alone_watches_nobody_and_writes_nothing(tmp_path, seconds):
  with Watchdog(tmp_path, seconds=seconds):
    pass
  assert list(tmp_path.iterdir()) == []
