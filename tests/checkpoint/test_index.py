"""A message about damage names the file."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest
import tensorstore

from maxagent.checkpoint import Checkpoints
from maxagent.checkpoint.index import files_of
from maxagent.errors import DamagedCheckpointError


def test_the_file_of_an_array_is_named_and_no_other(kit, folder):
  checkpoints = Checkpoints(folder, keep=1)
  noise = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
  state = kit.place({"w": noise, "small": np.ones(2, np.float32)}, "1")
  kit.save(checkpoints, 1, state)
  values = max((folder / "1/state").rglob("d/*"), key=lambda path: path.stat().st_size)
  assert files_of(folder / "1/state", "w") == str(values)
  assert files_of(folder / "1/state", "small") != str(values)  # it lies in the tree itself
  assert files_of(folder / "1/state", "absent") == ""
  size = values.stat().st_size
  with open(values, "r+b") as file:
    file.truncate(size // 2)
  told = re.fullmatch(rf"{values} \({size // 2:,} bytes, at least ([\d,]+) expected\)", files_of(folder / "1/state", "w"))
  assert told and size // 2 < int(told[1].replace(",", "")) <= size
  values.unlink()
  with pytest.raises(DamagedCheckpointError, match=rf"step 1 .*{values} \(missing\): array w .*left where it is") as refused:
    checkpoints.restore(1, kit.abstract_of(state))
  assert "the others are none" in str(refused.value)
  (folder / "1/state/manifest.ocdbt").write_bytes(b"")
  assert files_of(folder / "1/state", "w") == str(folder / "1/state/manifest.ocdbt")
  with pytest.raises(DamagedCheckpointError, match=r"state/manifest\.ocdbt: array small cannot be read"):
    checkpoints.restore(1, kit.abstract_of(state))
  (folder / "1/state/manifest.ocdbt").unlink()
  assert files_of(folder / "1/state", "w") == str(folder / "1/state/manifest.ocdbt") + " (missing)"


def test_a_tree_of_several_levels_is_followed(tmp_path: pathlib.Path):
  config = {"max_decoded_node_bytes": 300, "max_inline_value_bytes": 1}
  base = {"driver": "file", "path": f"{tmp_path}/"}
  store = tensorstore.KvStore.open({"driver": "ocdbt", "config": config, "base": base}).result()
  for i in range(20):
    store[f"params.layer.{i}/0"] = bytes([i]) * 15
  assert tensorstore.ocdbt.dump(store.base).result()["versions"][-1]["root_height"] > 1
  found = {i: pathlib.Path(files_of(tmp_path, f"params/layer/{i}")) for i in range(20)}
  assert len(set(found.values())) > 1
  assert all(bytes([i]) * 15 in path.read_bytes() for i, path in found.items())
