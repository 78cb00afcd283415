"""A workdir belongs to one run, and weights to one tokenizer."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maxagent import config as configs
from maxagent.config import Config
from maxagent.errors import TokenizerMismatchError, WorkdirBusyError, WorkdirMismatchError
from maxagent.parallel import processes
from maxagent.tokenizer import Tokenizer
from maxagent.tracking.writers import replace_file

# A run may go on with other values of these: they change where and when it computes, never what.
FREE_TO_CHANGE = (
  "mesh.", "checkpoint.", "evaluation.", "training.microbatches", "training.hang_seconds", "data.prefetch_batches",
  "data.on_damage",
)  # fmt: skip


def check(config: Config, workdir: Path) -> None:
  """Nothing, if `workdir` is new or holds this very run.

  Raises:
    WorkdirMismatchError: it holds another; the differing fields are named.
  """
  path = workdir / "config.json"
  text = processes.broadcast_json(path.read_text() if path.exists() else None)
  stored = config if text is None else configs.from_json(text)
  differing = [d for d in configs.differing_fields(stored, config) if not d.startswith(FREE_TO_CHANGE)]
  if differing:
    raise WorkdirMismatchError(
      f"{workdir} holds another run; it differs in {'; '.join(differing)} (theirs != yours). "
      "Use another --workdir (training.init_from begins with this one's weights), or put the old values back to go on with it."
    )


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
  """Keeps other runs out of the workdir for as long as the block, and this process, lives.

  Raises:
    WorkdirBusyError: another process holds it.
  """
  holder, file = None, None
  if processes.is_first():
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / "lock").open("a+")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back by the kernel, however the process ends
      file.truncate(0)
      file.write(f"process {os.getpid()} on {socket.gethostname()}")
      file.flush()
    except BlockingIOError:
      file.seek(0)
      holder = file.read() or "another process"
  try:
    if holder := processes.broadcast_json(holder):
      raise WorkdirBusyError(f"{workdir} is in use by {holder}; wait for it, stop it, or use another --workdir.")
    yield
  finally:
    if file:
      file.close()


def claim(config: Config, workdir: Path) -> None:
  """Writes the config into the workdir, whole or not at all."""
  if processes.is_first():
    workdir.mkdir(parents=True, exist_ok=True)
    replace_file(workdir / "config.json", configs.to_json(config).encode())


def require_tokenizer(metadata: Mapping[str, Any], tokenizer: Tokenizer, *, checkpoint: str | Path) -> None:
  """Raises TokenizerMismatchError unless a checkpoint's metadata names this tokenizer: its ids are what the weights know."""
  if metadata.get("tokenizer") != tokenizer.digest:
    raise TokenizerMismatchError(
      f"the weights in {checkpoint} were trained with tokenizer {metadata.get('tokenizer')}; data.tokenizer is "
      f"{tokenizer.digest}. Name the tokenizer that they were trained with."
    )
