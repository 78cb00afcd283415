"""The item of an Orbax checkpoint that holds the digests; imported only when something is saved, since it imports Orbax.

It is written by the same asynchronous commit as the arrays, so a checkpoint appears with its digests or not at all. Every
process writes one file, `part-00001-of-00004.json`: no collective runs off the main thread, and the parts are added up when
they are read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from maxagent.checkpoint import digest

FORMAT_VERSION = 1


class DigestHandler(ocp.AsyncCheckpointHandler):
  """Saves the digests of the state's arrays and of the JSON items that are saved with it."""

  async def async_save(self, directory: Any, args: DigestSave) -> list[Any]:
    """Takes the values now, so that the state may be donated afterwards; sums and writes in the background."""
    finish = digest.start(args.arrays)
    described = {name: (array.shape, array.dtype.name) for name, array in args.arrays.items()}
    return [ocp.future.CommitFutureAwaitingContractedSignals(_write(directory, args, described, finish), name="digests")]

  def save(self, directory: Any, args: DigestSave) -> None:
    """Orbax asks for it; only the asynchronous form is used."""
    raise NotImplementedError

  def restore(self, directory: Any, args: DigestRestore | None = None) -> None:
    """Orbax asks for it; `restore.read_record` reads the files."""
    raise NotImplementedError


@ocp.args.register_with_handler(DigestHandler, for_save=True)
@dataclasses.dataclass
class DigestSave(ocp.args.CheckpointArgs):
  """What to digest: arrays by name, and JSON items by name."""

  step: int
  arrays: Mapping[str, jax.Array]
  items: Mapping[str, Any]


@ocp.args.register_with_handler(DigestHandler, for_restore=True)
@dataclasses.dataclass
class DigestRestore(ocp.args.CheckpointArgs):
  """Orbax wants one for every handler."""


async def _write(
  directory: Any, args: DigestSave, described: Mapping[str, tuple[tuple[int, ...], str]], finish: Callable[[], dict[str, int]]
) -> None:
  sums = finish()
  process, processes = jax.process_index(), jax.process_count()
  record = {
    "format_version": FORMAT_VERSION,
    "step": args.step,
    "process": process,
    "processes": processes,
    "arrays": {
      name: {"shape": list(shape), "dtype": dtype, "sum": sums[name]} for name, (shape, dtype) in sorted(described.items())
    },
    "items": {name: digest.json_digest(value) for name, value in args.items.items()},
  }
  text = json.dumps({"record": record, "digest": digest.json_digest(record)})
  (directory / f"part-{process:05d}-of-{processes:05d}.json").write_text(text)
