"""kill -9 at any moment of a save leaves the old set of steps or the new one."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

from maxagent.checkpoint import Checkpoints, verify

# Step n holds n everywhere, so that a mixture of two steps would show.
SAVER = textwrap.dedent("""
  import sys
  import jax
  import numpy as np
  from maxagent.checkpoint import Checkpoints

  checkpoints = Checkpoints(sys.argv[1], keep=2)
  abstract = {f"w{i}": jax.ShapeDtypeStruct((256, 256), np.float32) for i in range(4)}
  restored = checkpoints.restore_latest_good(abstract)
  step = restored.step if restored else 0
  print("from", step, restored.skipped if restored else (), flush=True)
  while True:
    step += 1
    state = {name: jax.device_put(np.full((256, 256), step, np.float32)) for name in abstract}
    checkpoints.save(step, state, data_state={"step": step}, config_json="{}", metadata={})
    checkpoints.wait()
    print("saved", step, flush=True)
""")
ABSTRACT = {f"w{i}": jax.ShapeDtypeStruct((256, 256), np.float32) for i in range(4)}


def run_and_kill(folder: pathlib.Path, seconds: float) -> tuple[int, int]:
  """Starts the saver, kills it `seconds` after its first save; returns where it began and the last step it saw on disk."""
  root = pathlib.Path(__file__).parents[2]
  environment = {**os.environ, "PYTHONPATH": str(root)}
  with subprocess.Popen(
    [sys.executable, "-c", SAVER, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
  ) as process:
    assert process.stdout is not None
    first = process.stdout.readline().split(maxsplit=2)
    assert first[0] == "from" and first[2].strip() == "()"
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split("\n")
  last = [int(line.split()[1]) for line in rest if line.startswith("saved") and line.split()[1:]]
  return int(first[1]), max(last, default=int(first[1]) + 1)


@pytest.mark.parametrize("kills", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_after_kill_9_in_a_save_the_newest_finished_step_comes_back_whole(folder, kills):
  chance = random.Random(kills)
  finished = 0
  for _ in range(kills):
    began, finished_now = run_and_kill(folder, chance.uniform(0, 0.4))
    assert began >= finished, "a step that was reported saved is gone"
    finished = finished_now
  restored = Checkpoints(folder, keep=2).restore_latest_good(ABSTRACT)
  assert restored is not None and restored.skipped == () and restored.step >= finished
  assert restored.data_state == {"step": restored.step}
  assert all((np.asarray(leaf) == restored.step).all() for leaf in jax.tree.leaves(restored.state))
  assert all(one.good for one in verify(folder))


def test_a_kill_while_an_old_step_is_deleted_leaves_no_half_of_it_under_its_number(kit, folder, monkeypatch):
  checkpoints = Checkpoints(folder, keep=2)
  remove = shutil.rmtree

  def cut_short(path: pathlib.Path, ignore_errors: bool = False) -> None:
    if pathlib.Path(path).name == "deleting" and path.is_dir():
      remove(next(path.iterdir()) / "digests")  # and here the process dies
    elif pathlib.Path(path).name != "deleting":
      remove(path, ignore_errors=ignore_errors)

  with monkeypatch.context() as patch:
    patch.setattr(shutil, "rmtree", cut_short)
    for step in (1, 2, 3):
      kit.save(checkpoints, step, kit.place(kit.host_state(step), "1"))
    checkpoints.close()
  assert [(one.step, one.good) for one in verify(folder)] == [(2, True), (3, True)]
  assert [path.name for path in (folder / "deleting").iterdir()] == ["1"]
  again = Checkpoints(folder, keep=2)
  kit.save(again, 4, kit.place(kit.host_state(4), "1"))
  again.close()
  assert sorted(path.name for path in folder.iterdir()) == ["3", "4"]
