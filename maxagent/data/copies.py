"""A local copy of a split that lies in a bucket: ArrayRecord files are read at random, and from local disks.

    CACHE/shards/DIGEST/   a split as `shards` writes it, named by its index's digest, so that one that changes is another

The index is read first, from the bucket, at every opening; the files that the copy lacks are fetched, several at once, each
proven by its digest before it gets its name. The processes of a machine share a copy: one fetches, the others wait. A fetch
that was killed goes on where it was. Deleting the folder is safe whenever no run reads it.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
import shutil
import sys
import threading

from maxagent import storage
from maxagent.data.shards import INDEX_FILE, TABLES, ShardIndex, file_digest, parse_index
from maxagent.errors import DamagedShardError, StorageError
from maxagent.tracking.progress import Counter

_FILES_AT_ONCE = 4


@dataclasses.dataclass(frozen=True)
class _File:
  name: str
  digest: str
  bytes: int | None  # None: it is small, and hashed whole to know that it is there

  def lies_in(self, folder: pathlib.Path) -> bool:
    path = folder / self.name
    return path.is_file() and (file_digest(path) == self.digest if self.bytes is None else path.stat().st_size == self.bytes)


def local_split(split: str | os.PathLike[str]) -> pathlib.Path:
  """The folder to read a split from: itself, or its whole copy on this machine if it lies in a bucket.

  Raises:
    StorageError: the bucket cannot be read, or the cache has no room.
    DataError, DamagedShardError: as `read_index`; what lies in the bucket is not what its index says.
  """
  if not storage.is_remote(split):
    return pathlib.Path(split)
  address = os.fspath(split)
  content = storage.read_bytes(f"{address}/{INDEX_FILE}")
  index = parse_index(content, f"{address}/{INDEX_FILE}")
  files = _files(index, address)
  folder = storage.cache_folder() / "shards" / index.digest
  if not _lacking(files, folder):
    return folder
  with storage.held(folder):
    lacking = _lacking(files, folder)
    if lacking:
      _fetch(address, folder, lacking)
      (folder / INDEX_FILE).write_bytes(content)
  return folder


def _files(index: ShardIndex, address: str) -> list[_File]:
  files = [_File(f"{name}.npy", index.tables[name], None) for name in TABLES]
  files += [_File(shard.file, shard.digest, shard.file_bytes) for shard in index.shards]
  for file in files:
    if pathlib.PurePath(file.name).name != file.name:
      raise DamagedShardError(f"{address}/{INDEX_FILE} names {file.name!r}, which is no name of a file in its folder.")
  return files


def _lacking(files: list[_File], folder: pathlib.Path) -> list[_File]:
  return [file for file in files if not file.lies_in(folder)]


def _fetch(address: str, folder: pathlib.Path, files: list[_File]) -> None:
  total = sum(file.bytes or 0 for file in files)
  free = shutil.disk_usage(folder).free
  if total > free:
    raise StorageError(
      f"{address} needs {total:,} bytes in {folder}, which has {free:,} free; free some, or name another folder "
      f"({storage.CACHE})."
    )
  print(f"fetching {len(files)} files, {total / 1e6:,.0f} MB, from {address} into {folder}", file=sys.stderr, flush=True)
  came, lock, failed = 0, threading.Lock(), threading.Event()
  with Counter("MB") as counter, concurrent.futures.ThreadPoolExecutor(_FILES_AT_ONCE) as pool:

    def progress(count: int) -> None:
      nonlocal came
      if failed.is_set():  # the other files are not waited for; what came of them is kept
        raise concurrent.futures.CancelledError
      with lock:
        came += count
        counter.update(came // 1_000_000, total // 1_000_000)

    fetches = [
      pool.submit(storage.fetch, f"{address}/{file.name}", folder / file.name, digest=file.digest, progress=progress)
      for file in files
    ]
    try:
      for fetch in concurrent.futures.as_completed(fetches):
        fetch.result()
    except BaseException:
      failed.set()
      pool.shutdown(wait=False, cancel_futures=True)
      raise
