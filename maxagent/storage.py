"""Files that lie in a bucket (gs://), read through etils epath: every read answers within a time or fails with a cure.

Two variables of the environment, as they belong to a machine and not to a run:

    MAXAGENT_CACHE             folder for copies of what is read often (default ~/.cache/maxagent)
    MAXAGENT_NETWORK_SECONDS   how long a bucket may keep silent (default 30)
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import pathlib
import queue
import sys
import threading
from collections.abc import Callable, Iterator

import xxhash

from maxagent.errors import ConfigError, DamagedShardError, StorageError

SCHEME = "gs://"
CACHE = "MAXAGENT_CACHE"
SECONDS = "MAXAGENT_NETWORK_SECONDS"
_BLOCK_BYTES = 8 << 20
Progress = Callable[[int], None]  # told how many bytes have come


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether a path lies in a bucket."""
  return os.fspath(path).startswith(SCHEME)


def cache_folder() -> pathlib.Path:
  """Where copies are kept on this machine."""
  return pathlib.Path(os.environ.get(CACHE) or "~/.cache/maxagent").expanduser()


def read_bytes(path: str | os.PathLike[str]) -> bytes:
  """The content of a file.

  Raises:
    OSError: a local one cannot be read.
    StorageError: one in a bucket cannot be.
  """
  return b"".join(_blocks(os.fspath(path), 0)) if is_remote(path) else pathlib.Path(path).read_bytes()


def fetch(address: str, target: pathlib.Path, *, digest: str, progress: Progress) -> None:
  """Copies a file of a bucket to `target`, which appears only once its xxh3-128 is proven; a broken copy is gone on with.

  Raises:
    StorageError: the bucket cannot be read.
    DamagedShardError: what came is not what the digest says.
  """
  partial = target.with_name(target.name + ".partial")
  begun = partial.exists()
  if _copy(address, partial, progress) != digest:
    partial.unlink()
    # What had been begun may be of another file: one more try, from the first byte.
    if not begun or _copy(address, partial, progress) != digest:
      partial.unlink(missing_ok=True)
      raise DamagedShardError(f"{address} is not the file that its index names (another digest); upload the folder again.")
  partial.replace(target)


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
  """Makes a folder and keeps the other processes of this machine out of it, who wait, for as long as the block lives."""
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / ".lock").open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back by the kernel, however the process ends
    except BlockingIOError:
      print(f"waiting for another process, which fills {folder}", file=sys.stderr, flush=True)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _copy(address: str, partial: pathlib.Path, progress: Progress) -> str:
  """Goes on with a copy to its end; its digest."""
  digest = xxhash.xxh3_128()
  with partial.open("a+b") as file:
    file.seek(0)
    while block := file.read(_BLOCK_BYTES):
      digest.update(block)
      progress(len(block))
    for block in _blocks(address, file.tell()):
      file.write(block)
      digest.update(block)
      progress(len(block))
  return digest.hexdigest()


def _blocks(address: str, start: int) -> Iterator[bytes]:
  """The bytes of a file from `start` on. A thread reads; it is left behind when it falls silent, as nothing can end it."""
  seconds, answers, left = _seconds(), queue.Queue[bytes | Exception](maxsize=2), threading.Event()

  def read() -> None:
    try:
      for block in _read(address, start):
        if left.is_set():
          return
        answers.put(block)
      answers.put(b"")
    except Exception as error:
      answers.put(error)

  threading.Thread(target=read, name=f"reads {address}", daemon=True).start()
  came = 0
  try:
    while answer := answers.get(timeout=seconds):
      if isinstance(answer, Exception):
        raise _explained(address, answer) from answer
      came += len(answer)
      yield answer
  except queue.Empty:
    raise StorageError(
      f"{address} is silent: etils epath was asked for its bytes from {start + came} on and gave none for {seconds:g} seconds "
      f"({SECONDS}). Check the network of this machine; or copy the folder here, or mount the bucket (Cloud Storage FUSE), and "
      "name the local path."
    ) from None
  finally:
    left.set()
    with contextlib.suppress(queue.Empty):
      while True:  # so that a thread that waits for room in the queue ends
        answers.get_nowait()


def _read(address: str, start: int) -> Iterator[bytes]:
  from etils import epath  # half a second with its backend, for buckets alone

  # They log every try, with its traceback; what is raised in the end is all that a user needs.
  for name in ("gcsfs", "google.auth"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  with epath.Path(address).open("rb") as file:
    file.seek(start)
    while block := file.read(_BLOCK_BYTES):
      yield block


def _explained(address: str, error: Exception) -> StorageError:
  if isinstance(error, FileNotFoundError):
    return StorageError(f"{address} does not exist; check the names of the bucket and of what lies in it.")
  if isinstance(error, ImportError):
    return StorageError(f"{address} lies in a bucket, and the package gcsfs is not installed: pip install 'maxagent[gcs]'.")
  return StorageError(
    f"{address} cannot be read ({type(error).__name__}: {error}). Check the network, the right to read it (`gcloud auth "
    "application-default login`) and its name; or copy the folder here and name the local path."
  )


def _seconds() -> float:
  text = os.environ.get(SECONDS) or "30"
  try:
    seconds = float(text)
  except ValueError:
    seconds = math.nan
  if not 0 < seconds < math.inf:
    raise ConfigError(f"the environment's {SECONDS} is {text!r}; expected a number of seconds above 0.")
  return seconds
