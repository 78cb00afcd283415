"""Several processes save one checkpoint together, and any number of them restores it."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from maxagent.checkpoint import Checkpoints, verify

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

PROCESS = textwrap.dedent("""
  import sys
  import jax
  import numpy as np
  from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  address, processes, process, folder, task = sys.argv[1:]
  jax.distributed.initialize(address, int(processes), int(process))
  from maxagent.checkpoint import Checkpoints
  from maxagent.errors import CheckpointError, DiskFullError

  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
  specs = {"rows": P("a", "b"), "columns": P("b", "a"), "replicated": P(), "half": P("b"), "count": P()}
  shapes = {"rows": (64, 96), "columns": (32, 1040), "replicated": (16, 16), "half": (24,), "count": ()}
  def values(step, name):
    return np.random.default_rng([step, len(name)]).standard_normal(shapes[name]).astype(np.float32)
  def build(step):
    return {
      name: jax.make_array_from_callback(shapes[name], NamedSharding(mesh, specs[name]), lambda i, n=name: values(step, n)[i])
      for name in shapes
    }
  state = build(0)
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
  checkpoints = Checkpoints(folder, keep=3)
  if task == "save":
    for step in (1, 2):
      assert checkpoints.save(step, build(step), data_state={"step": step}, config_json="{}", metadata={"tokens": step})
    checkpoints.wait()
    assert not checkpoints.save(2, build(2), data_state={}, config_json="{}", metadata={})
  restored = checkpoints.restore_latest_good(abstract)
  for name in shapes:
    for shard in restored.state[name].addressable_shards:
      assert (np.asarray(shard.data) == values(restored.step, name)[shard.index]).all()
  checkpoints.close()
  print("RESTORED", restored.step, [step for step, _ in restored.skipped], flush=True)
""")


def run(folder: pathlib.Path, processes: int, task: str) -> list[str]:
  """Runs the script in several processes; returns the last line of each."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  root = pathlib.Path(__file__).parents[2]
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={8 // processes}"
  environment = {**os.environ, "PYTHONPATH": str(root), "XLA_FLAGS": flags}
  started = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, address, str(processes), str(process), str(folder), task],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )
    for process in range(processes)
  ]  # fmt: skip
  lines = []
  for process in started:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    lines.append(out.strip().splitlines()[-1])
  return lines


def test_two_processes_save_and_two_restore_the_same_step_past_damage(folder):
  assert run(folder, 2, "save") == ["RESTORED 2 []"] * 2
  assert len(list((folder / "2/digests").glob("part-*"))) == 2
  assert [one.good for one in verify(folder)] == [True, True]
  largest = max((folder / "2/state/ocdbt.process_1").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 16
  largest.write_bytes(content)
  assert run(folder, 2, "restore") == ["RESTORED 1 [2]"] * 2
  assert sorted(path.name for path in (folder / "damaged").iterdir()) == ["2", "2.txt"]


def test_what_two_processes_saved_one_process_restores_with_the_same_digests(folder):
  run(folder, 2, "save")
  shapes = {"rows": (64, 96), "columns": (32, 1040), "replicated": (16, 16), "half": (24,), "count": ()}
  restored = Checkpoints(folder, keep=1).restore_latest_good(
    {n: jax.ShapeDtypeStruct(s, np.float32) for n, s in shapes.items()}
  )
  assert restored is not None and (restored.step, restored.metadata["tokens"]) == (2, 2)
  assert run(folder, 4, "restore") == ["RESTORED 2 []"] * 4
