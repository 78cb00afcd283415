"""Whatever happens to the bytes of a checkpoint, wrong values are never answered, and the refusal names what was harmed.

Some files may change without harm: Orbax writes them for itself, and no value is read from them. A restore is then exact.
"""

from __future__ import annotations

import collections
import pathlib
import random
import re
import shutil

import jax
import numpy as np
import pytest

from maxagent.checkpoint import Checkpoints
from maxagent.errors import CheckpointError

ARRAYS = "3/state/ocdbt.process_0/d/HASH"  # the kind of file that holds what arrays are made of


def small_state(kit) -> object:
  """Little enough for hundreds of restores, with arrays that compress well and arrays that do not."""
  noise = np.random.default_rng(0).standard_normal((128, 256)).astype(np.float32)
  return kit.place({"params": {"w": noise, "zeros": np.zeros((32, 32), np.float32)}, "step": np.asarray(3, np.int32)}, "4x2")


def kind_of(path: pathlib.Path, root: pathlib.Path) -> str:
  """Files of one purpose: random names are one kind."""
  return re.sub(r"[0-9a-f]{32}", "HASH", str(path.relative_to(root)))


def outcome(kit, folder: pathlib.Path, state: object, harmed: pathlib.Path) -> str:
  """How a restore ended; raises on anything but exact values or a refusal that names step, file, array and what was done."""
  try:
    restored = Checkpoints(folder, keep=1).restore_latest_good(kit.abstract_of(state))
  except CheckpointError as error:
    assert (folder / "damaged/3").is_dir() and not (folder / "3").exists()
    told = str(error)
    assert "  step 3: " in told and str(harmed) in told and f"The steps now lie in {folder / 'damaged'}" in told
    assert re.search(r"array (params/w|params/zeros|step) ", told) or "state" not in harmed.relative_to(folder).parts
    return "refused"
  assert restored is not None
  assert kit.same_bits(restored.state, state), "wrong values were restored silently"
  assert restored.data_state == {"position": 3} and restored.metadata["tokens"] == 30 and '"seed": 1' in restored.config_json
  return "restored exactly"


@pytest.fixture
def saved(kit, tmp_path) -> tuple[pathlib.Path, object]:
  state = small_state(kit)
  checkpoints = Checkpoints(tmp_path / "good", keep=1)
  kit.save(checkpoints, 3, state)
  checkpoints.close()
  return tmp_path / "good", state


@pytest.mark.parametrize(
  ("per_kind", "in_arrays"), [(8, 120), pytest.param(40, 400, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_single_bit_flips_in_files_of_every_kind_never_restore_wrong_values(kit, saved, tmp_path, capsys, per_kind, in_arrays):
  good, state = saved
  files = sorted(path for path in good.rglob("*") if path.is_file() and path.stat().st_size)
  by_kind = collections.defaultdict(list)
  for path in files:
    by_kind[kind_of(path, good)].append(path)
  chance = random.Random(0)
  counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  for kind in [*sorted(by_kind) * per_kind, *[ARRAYS] * in_arrays]:
    (path,) = chance.choices(by_kind[kind], weights=[path.stat().st_size for path in by_kind[kind]])
    copy = tmp_path / "copy"
    shutil.copytree(good, copy)
    content = bytearray((copy / path.relative_to(good)).read_bytes())
    bit = chance.randrange(len(content) * 8)
    content[bit // 8] ^= 1 << bit % 8
    (copy / path.relative_to(good)).write_bytes(content)
    counts[kind][outcome(kit, copy, state, copy / path.relative_to(good))] += 1
    shutil.rmtree(copy)
  with capsys.disabled():
    print(f"\n{sum(count.total() for count in counts.values())} bit flips, 0 silent:")
    for kind in sorted(counts):
      print(f"  {kind}: {dict(counts[kind])}")
  assert counts[ARRAYS]["refused"] > in_arrays // 2
  assert sum(count.total() for count in counts.values()) >= (200 if in_arrays < 400 else 1000)


@pytest.mark.parametrize("harm", ["truncated", "emptied", "deleted", "zeroed", "longer"])
def test_harm_to_any_one_file_never_restores_wrong_values(kit, saved, tmp_path, harm):
  good, state = saved
  counts: collections.Counter[str] = collections.Counter()
  for path in sorted(path for path in good.rglob("*") if path.is_file()):
    copy = tmp_path / "copy"
    shutil.copytree(good, copy)
    target = copy / path.relative_to(good)
    content = target.read_bytes()
    changed = {
      "truncated": content[: len(content) // 2],
      "emptied": b"",
      "zeroed": bytes(len(content)),
      "longer": content + b"\0",
    }
    if harm == "deleted":
      target.unlink()
    else:
      target.write_bytes(changed[harm])
    nobody_knows = harm == "deleted" and target.parent.name == "digests"  # how many there were
    counts[outcome(kit, copy, state, target.parent if nobody_knows else target)] += 1
    shutil.rmtree(copy)
  assert counts["refused"] > 0 or harm == "longer"


@pytest.mark.parametrize("name", ["state", "data", "config", "metadata", "digests"])
def test_a_missing_item_is_refused(kit, saved, name):
  good, state = saved
  shutil.rmtree(good / "3" / name)
  assert outcome(kit, good, state, good / "3" / name) == "refused"


def test_a_chunk_of_another_step_is_refused(kit, saved):
  good, state = saved
  checkpoints = Checkpoints(good, keep=2)
  kit.save(checkpoints, 4, jax.tree.map(lambda x: x + 1, state))
  checkpoints.close()
  shutil.rmtree(good / "3/state")
  shutil.move(good / "4/state", good / "3/state")
  shutil.rmtree(good / "4")
  assert outcome(kit, good, state, good / "3/state") == "refused"
