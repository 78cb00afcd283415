"""Files in a bucket, on an emulator of the object store; and what is said when the network is gone."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import xxhash

from maxagent import storage
from maxagent.errors import ConfigError, DamagedShardError, StorageError
from maxagent.tokenizer import Tokenizer, train

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = np.random.default_rng(0).bytes(20_000_000)  # more than a block of ours and of the library's
Upload = Callable[[str, bytes], str]
DIGEST = xxhash.xxh3_128_hexdigest(DATA)


@pytest.fixture(scope="module")
def large(upload: Upload) -> str:
  return upload("large", DATA)


def unseen(count: int) -> None:
  """A progress that nobody looks at."""


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
  """A port that takes connections and never answers."""
  with socket.socket() as server:
    server.bind(("localhost", 0))
    server.listen(16)
    yield server.getsockname()[1]


def read_elsewhere(port: int, *, seconds: float) -> subprocess.CompletedProcess[str]:
  """Trains, in another process, with a tokenizer of a bucket whose server is at `port`."""
  command = [sys.executable, "-m", "maxagent.cli.main", "data", "build", "--kind=web", "--tokenizer=gs://bucket/t.model"]
  environment = os.environ | {"STORAGE_EMULATOR_HOST": f"http://localhost:{port}", storage.SECONDS: str(seconds)}
  command += [f"--output={os.devnull}", "README.md"]
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_a_file_of_a_bucket_is_read_whole(large: str) -> None:
  assert storage.read_bytes(large) == DATA


def test_local_files_are_read_as_ever(tmp_path: pathlib.Path) -> None:
  (tmp_path / "a").write_bytes(b"abc")
  assert storage.read_bytes(tmp_path / "a") == b"abc"
  with pytest.raises(FileNotFoundError):
    storage.read_bytes(tmp_path / "b")


def test_what_is_not_in_the_bucket_is_named(upload: Upload) -> None:
  for address in ("gs://bucket/none", "gs://other/none"):
    with pytest.raises(StorageError, match=f"{address} does not exist; check the names"):
      storage.read_bytes(address)


def test_a_tokenizer_is_loaded_from_a_bucket(upload: Upload, tmp_path: pathlib.Path) -> None:
  trained = train(["a text to learn from " * 20], tmp_path / "t.model", vocab_size=340, at_most=True)
  assert Tokenizer.load(upload("t.model", (tmp_path / "t.model").read_bytes())).digest == trained.digest
  with pytest.raises(StorageError, match=r"tokenizer: gs://bucket/none\.model does not exist"):
    Tokenizer.load("gs://bucket/none.model")


def test_a_fetched_file_is_proven_and_gets_its_name_last(large: str, tmp_path: pathlib.Path) -> None:
  counts: list[int] = []
  storage.fetch(large, tmp_path / "large", digest=DIGEST, progress=counts.append)
  assert (tmp_path / "large").read_bytes() == DATA
  assert sum(counts) == len(DATA) and len(counts) > 1
  assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_a_broken_fetch_goes_on_where_it_was(large: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  (tmp_path / "large.partial").write_bytes(DATA[:15_000_000])
  starts: list[int] = []
  read = storage._read
  monkeypatch.setattr(storage, "_read", lambda address, start: (starts.append(start), read(address, start))[1])
  storage.fetch(large, tmp_path / "large", digest=DIGEST, progress=unseen)
  assert starts == [15_000_000]
  assert (tmp_path / "large").read_bytes() == DATA


@pytest.mark.parametrize("begun", [b"of another file", DATA + b"more"])
def test_the_beginning_of_another_file_is_begun_again(large: str, tmp_path: pathlib.Path, begun: bytes) -> None:
  (tmp_path / "large.partial").write_bytes(begun)
  storage.fetch(large, tmp_path / "large", digest=DIGEST, progress=unseen)
  assert (tmp_path / "large").read_bytes() == DATA


@pytest.mark.parametrize("begun", [None, b"of another file"])
def test_a_file_that_is_not_what_its_digest_says_is_refused_and_not_kept(
  large: str, tmp_path: pathlib.Path, begun: bytes | None
) -> None:
  if begun:
    (tmp_path / "large.partial").write_bytes(begun)
  with pytest.raises(DamagedShardError, match="gs://bucket/large is not the file that its index names"):
    storage.fetch(large, tmp_path / "large", digest="0" * 32, progress=unseen)
  assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_keeps_silent_fails_in_time_with_what_to_do() -> None:
  with silent_server() as port:
    start = time.monotonic()
    done = read_elsewhere(port, seconds=1.5)
  assert done.returncode == 2 and time.monotonic() - start < 15
  assert done.stderr.startswith("maxagent: StorageError: tokenizer: gs://bucket/t.model is silent")
  assert "for 1.5 seconds (MAXAGENT_NETWORK_SECONDS)" in done.stderr and "mount the bucket" in done.stderr
  assert "Traceback" not in done.stderr


def test_a_network_that_is_gone_fails_in_time_with_what_to_do(free_port: Callable[[], int]) -> None:
  start = time.monotonic()
  done = read_elsewhere(free_port(), seconds=1.5)
  assert done.returncode == 2 and time.monotonic() - start < 15
  assert done.stderr.startswith("maxagent: StorageError: tokenizer: gs://bucket/t.model")
  assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_a_server_that_falls_silent_amid_a_file_leaves_what_came(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  def stalling(address: str, start: int) -> Iterator[bytes]:
    yield DATA[start : start + 1000]
    time.sleep(3)

  monkeypatch.setattr(storage, "_read", stalling)
  monkeypatch.setenv(storage.SECONDS, "0.2")
  with pytest.raises(StorageError, match=r"from 1000 on and gave none for 0\.2 seconds"):
    storage.fetch("gs://bucket/large", tmp_path / "large", digest=DIGEST, progress=unseen)
  assert (tmp_path / "large.partial").read_bytes() == DATA[:1000]


def test_a_slow_but_steady_server_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
  def slow(address: str, start: int) -> Iterator[bytes]:
    for place in range(6):
      time.sleep(0.1)
      yield bytes([place])

  monkeypatch.setattr(storage, "_read", slow)
  monkeypatch.setenv(storage.SECONDS, "0.4")
  assert storage.read_bytes("gs://bucket/slow") == bytes(range(6))


def test_without_gcsfs_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
  def missing(address: str, start: int) -> Iterator[bytes]:
    raise ImportError("Please install gcsfs to access Google Storage")
    yield b""

  monkeypatch.setattr(storage, "_read", missing)
  with pytest.raises(StorageError, match=r"pip install 'maxagent\[gcs\]'"):
    storage.read_bytes("gs://bucket/x")


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf", "nan"])
def test_a_time_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv(storage.SECONDS, text)
  with pytest.raises(ConfigError, match=f"MAXAGENT_NETWORK_SECONDS is '{text}'; expected a number of seconds above 0"):
    storage.read_bytes("gs://bucket/x")


def test_a_folder_that_is_held_is_waited_for_and_freed_by_a_kill(tmp_path: pathlib.Path) -> None:
  code = (
    "import pathlib, sys, time; from maxagent import storage\n"
    "with storage.held(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
  )
  first, second = (
    subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, text=True, stdout=-1, stderr=-1) for _ in range(2)
  )
  try:
    holder, waiter = (first, second) if _says(first, "held", 10) else (second, first)
    assert "waiting for another process" in (waiter.stderr.readline() if waiter.stderr else "")
    holder.send_signal(signal.SIGKILL)
    assert waiter.stdout is not None and waiter.stdout.readline() == "held\n"
  finally:
    for process in (first, second):
      process.kill()
      process.communicate()


def _says(process: subprocess.Popen[str], word: str, seconds: float) -> bool:
  import selectors

  with selectors.DefaultSelector() as ready:
    ready.register(process.stdout or 0, selectors.EVENT_READ)
    return bool(ready.select(seconds)) and process.stdout is not None and process.stdout.readline().strip() == word
