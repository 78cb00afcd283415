"""Shards that lie in a bucket: an emulator of the object store holds them, a cache folder their copy."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from maxagent import storage
from maxagent.config.schema import Data, Source
from maxagent.data import copies
from maxagent.data.copies import local_split
from maxagent.data.pipeline import open_pipeline
from maxagent.data.shards import open_shards, read_index
from maxagent.errors import DamagedShardError, DataError, StorageError

ROOT = pathlib.Path(__file__).resolve().parents[2]
names = (f"source{n}" for n in itertools.count())


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
  monkeypatch.setenv(storage.CACHE, str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def uploaded(make_source: Callable[..., Source], upload: Callable[[str, bytes], str]) -> Iterator[tuple[Source, Source]]:
  """A source here and the same in a bucket; several shards."""
  local = make_source(next(names), [300, 20, 700, 9, 400, 800])
  for path in sorted(pathlib.Path(local.path).rglob("*.*")):
    upload(f"{local.name}/{path.relative_to(local.path)}", path.read_bytes())
  assert len(read_index(f"{local.path}/train").shards) > 1
  yield local, dataclasses.replace(local, path=f"gs://bucket/{local.name}")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
  """The names of the files that are read from the bucket."""
  addresses: list[str] = []
  read = storage._read
  monkeypatch.setattr(
    storage, "_read", lambda address, start: (addresses.append(address.split("/")[-1]), read(address, start))[1]
  )
  return addresses


def test_training_reads_the_same_batches_from_a_bucket(
  uploaded: tuple[Source, Source], make_data: Callable[..., Data], digest: str
) -> None:
  batches = []
  for source in uploaded:
    pipeline = open_pipeline(make_data(source), digest, rows=range(4))
    batches.append([np.array(next(pipeline).tokens) for _ in range(5)])
    pipeline.close()
  np.testing.assert_array_equal(*batches)


def test_a_copy_is_made_once_and_its_index_read_every_time(uploaded: tuple[Source, Source], fetched: list[str]) -> None:
  local, remote = uploaded
  folder = local_split(f"{remote.path}/train")
  theirs = {path.name: path.read_bytes() for path in pathlib.Path(local.path, "train").iterdir()}
  assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == theirs
  assert fetched[0] == "index.json" and sorted(fetched) == sorted(theirs)
  fetched.clear()
  assert local_split(f"{remote.path}/train") == folder and fetched == ["index.json"]


@pytest.mark.parametrize("name", ["tokens-00000.array_record", "lengths.npy"])
@pytest.mark.parametrize("content", [None, b"cut short"])
def test_a_file_that_the_copy_lacks_is_fetched_again(
  uploaded: tuple[Source, Source], fetched: list[str], name: str, content: bytes | None
) -> None:
  folder = local_split(f"{uploaded[1].path}/train")
  (folder / name).unlink()
  if content is not None:
    (folder / name).write_bytes(content)
  fetched.clear()
  local_split(f"{uploaded[1].path}/train")
  assert fetched == ["index.json", name]
  assert len(open_shards(folder)) == 6


def test_a_fetch_that_was_killed_goes_on_and_leaves_no_index_before_its_end(
  uploaded: tuple[Source, Source], fetched: list[str], monkeypatch: pytest.MonkeyPatch, cache: pathlib.Path
) -> None:
  fetch = storage.fetch

  def failing(address: str, target: pathlib.Path, **how: object) -> None:
    if target.name == "tokens-00001.array_record":
      raise StorageError("the network is gone")
    fetch(address, target, **how)  # type: ignore[arg-type]

  with monkeypatch.context() as patch:
    patch.setattr(copies, "_FILES_AT_ONCE", 1)
    patch.setattr(storage, "fetch", failing)
    with pytest.raises(StorageError, match="the network is gone"):
      local_split(f"{uploaded[1].path}/train")
  assert list(cache.rglob("lengths.npy")) and not list(cache.rglob("index.json"))
  fetched.clear()
  folder = local_split(f"{uploaded[1].path}/train")
  assert "tokens-00001.array_record" in fetched and "tokens-00000.array_record" not in fetched
  assert len(open_shards(folder)) == 6


def test_data_that_is_built_anew_under_the_same_address_is_another_copy(
  uploaded: tuple[Source, Source], make_source: Callable[..., Source], upload: Callable[[str, bytes], str]
) -> None:
  local, remote = uploaded
  before = local_split(f"{remote.path}/train")
  other = make_source("other", [5, 6, 7])
  for path in pathlib.Path(other.path, "train").iterdir():
    upload(f"{local.name}/train/{path.name}", path.read_bytes())
  after = local_split(f"{remote.path}/train")
  assert after != before and len(open_shards(after)) == 3 and len(open_shards(before)) == 6


def test_an_upload_that_is_not_what_its_index_says_is_refused(
  uploaded: tuple[Source, Source], upload: Callable[[str, bytes], str], cache: pathlib.Path
) -> None:
  name = "tokens-00000.array_record"
  path = pathlib.Path(uploaded[0].path, "train", name)
  upload(f"{uploaded[0].name}/train/{name}", path.read_bytes()[:-1] + b"x")
  with pytest.raises(DamagedShardError, match=f"train/{name} is not the file that its index names"):
    local_split(f"{uploaded[1].path}/train")
  assert not list(cache.rglob(name))


def test_a_folder_without_an_index_and_one_of_another_version_are_told(upload: Callable[[str, bytes], str]) -> None:
  with pytest.raises(StorageError, match=r"gs://bucket/nothing/train/index\.json does not exist"):
    local_split("gs://bucket/nothing/train")
  upload("old/train/index.json", json.dumps({"format_version": 0, "digest": ""}).encode())
  with pytest.raises(DataError, match=r"gs://bucket/old/train/index\.json has format version 0"):
    local_split("gs://bucket/old/train")


def test_an_index_cannot_name_a_file_outside_its_folder(
  uploaded: tuple[Source, Source], upload: Callable[[str, bytes], str]
) -> None:
  index = read_index(f"{uploaded[0].path}/train")
  evil = dataclasses.replace(index, shards=(dataclasses.replace(index.shards[0], file="../../escape"),))
  upload("evil/train/index.json", evil.to_json().encode())
  with pytest.raises(DamagedShardError, match=r"names '\.\./\.\./escape'"):
    local_split("gs://bucket/evil/train")


def test_a_full_disk_is_told_before_anything_is_fetched(
  uploaded: tuple[Source, Source], monkeypatch: pytest.MonkeyPatch, fetched: list[str]
) -> None:
  usage = type("Usage", (), {"free": 1000})
  monkeypatch.setattr(copies.shutil, "disk_usage", lambda folder: usage)
  with pytest.raises(StorageError, match="which has 1,000 free; free some, or name another folder"):
    local_split(f"{uploaded[1].path}/train")
  assert fetched == ["index.json"]


def test_the_processes_of_a_machine_share_one_fetch(uploaded: tuple[Source, Source]) -> None:
  code = "import sys; from maxagent.data.copies import local_split; print(local_split(sys.argv[1]))"
  command = [sys.executable, "-W", "error", "-c", code, f"{uploaded[1].path}/train"]
  running = [subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=-1, stderr=-1, text=True) for _ in range(3)]
  said = [process.communicate(timeout=60) for process in running]
  assert [process.returncode for process in running] == [0, 0, 0], said
  assert len({out for out, _ in said}) == 1
  assert sum("fetching" in error for _, error in said) == 1


def test_a_local_split_is_read_where_it_is(tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
  assert local_split(tmp_path) == tmp_path and not cache.exists()
