"""The checkpoints of one run: saved while training goes on, kept to a number, restored only when proven whole.

A step's folder appears under its number only when everything in it is written (Orbax writes beside it and renames), and holds

    state/     every array of the state under plain names (TensorStore)
    data/      where the data pipeline stood: positions, never tokens
    config/    the run's configuration
    metadata/  tokens seen, time ledger, versions
    digests/   of every array and of the three items above, one file per process

It disappears the same way: it is renamed into `deleting/` before the first of its files is removed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import platform
import shutil
import threading
from typing import Any

import jax

from maxagent.checkpoint.naming import Named, named_leaves, nested
from maxagent.checkpoint.restore import Restored, none_good, quarantine, restore_step, saved_steps
from maxagent.errors import CheckpointError, ConfigError, DamagedCheckpointError, DiskFullError
from maxagent.parallel.processes import broadcast_json, is_first

_ROOM = 1.1  # weights hardly compress (noise in float32: 0.92 of its bytes on disk, measured), and indices and blocks take some
_ROOM_BYTES = 1 << 20  # for the small files, whatever the state's size
DELETING = "deleting"  # subfolder for old steps on their way out
UNFINISHED = "*.orbax-checkpoint-tmp*"  # what Orbax calls a step's folder until everything in it is written


class Checkpoints:
  """Saves and restores one run's state in `folder`, keeping the newest `keep` steps. All processes call each method alike."""

  def __init__(self, folder: str | pathlib.Path, *, keep: int) -> None:
    if keep < 1:
      raise ConfigError(f"checkpoint.keep is {keep}; expected 1 or more, since a run goes on from its newest checkpoint.")
    self.folder = pathlib.Path(folder).absolute()
    self._keep = keep
    self._manager: Any = None  # Orbax's, made at the first save: importing and making it costs time that a restore need not pay
    self._saving: int | None = None
    self._deletion = threading.Thread()

  def save(self, step: int, state: Any, *, data_state: dict[str, Any], config_json: str, metadata: dict[str, Any]) -> bool:
    """Starts saving and returns once the state may be donated; False if this step was saved before and nothing was done.

    `data_state`, `config_json` and `metadata` must be the same on every process. Waits for the save before it, and raises
    what went wrong there. Raises DiskFullError before anything is written.
    """
    self.wait()
    arrays = _require_arrays(named_leaves(state))
    if not self._may_save(step, arrays):
      return False
    items = _json_items(data_state, config_json, metadata)
    try:
      self._start(step, arrays, items)
    except Exception as error:
      self._abandon(step, error)
    self._saving = step
    return True

  def wait(self) -> None:
    """Returns once the save that is under way lies on disk; raises DiskFullError or CheckpointError if it failed."""
    if self._saving is None:
      return
    step, self._saving = self._saving, None
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      self._abandon(step, error)
    if step not in self.steps():
      raise CheckpointError(
        f"step {step} was saved but {self.folder / str(step)} is not there; does another run use this folder?"
      )
    if is_first():
      self._let_go()

  def close(self) -> None:
    """Waits for the save under way and lets go of Orbax's threads."""
    try:
      self.wait()
    finally:
      self._join_deletion()
      self._forget_manager()

  def steps(self) -> list[int]:
    """Saved steps, ascending, good or not."""
    return saved_steps(self.folder)

  def restore_latest_good(self, abstract_state: Any) -> Restored | None:
    """The newest step that is whole, on the shardings of `abstract_state`; None if nothing was ever saved.

    Damaged steps on the way are moved to `damaged/` and listed, with the reason, in `skipped`. Raises CheckpointError if none
    is whole, or if a step is whole but of another model (nothing is moved then).
    """
    self.wait()
    skipped: list[tuple[int, str]] = []
    for step in reversed(broadcast_json(self.steps())):
      try:
        return dataclasses.replace(restore_step(self.folder, step, abstract_state), skipped=tuple(skipped))
      except DamagedCheckpointError as error:
        skipped.append((step, str(error)))
        self._quarantine(step, str(error))
    if skipped:
      raise CheckpointError(none_good(self.folder, skipped) + f" The steps now lie in {self.folder / 'damaged'}.")
    return None

  def restore(self, step: int, abstract_state: Any) -> Restored:
    """One step; raises DamagedCheckpointError, naming file and array, if it is not whole, and leaves it where it is."""
    self.wait()
    if step not in broadcast_json(self.steps()):
      raise CheckpointError(f"{self.folder} holds no checkpoint of step {step}; it holds {self.steps() or 'none'}.")
    try:
      return restore_step(self.folder, step, abstract_state)
    except DamagedCheckpointError as error:
      others = [other for other in self.steps() if other != step]
      raise DamagedCheckpointError(
        f"step {step} in {self.folder} is not whole: {error} It was left where it is; the others are {others or 'none'}."
      ) from error

  def _may_save(self, step: int, arrays: Named) -> bool:
    """Whether there is something to save; process 0 looks at the disk and all follow it."""
    if is_first():
      self.folder.mkdir(parents=True, exist_ok=True)
      if self._manager is None:
        self._remove_unfinished()
    needed_bytes = int(sum(array.nbytes for array in arrays.values()) * _ROOM) + _ROOM_BYTES
    if is_first() and shutil.disk_usage(self.folder).free < needed_bytes:
      self._join_deletion()
    look = [step in self.steps(), shutil.disk_usage(self.folder).free] if is_first() else None
    exists, free_bytes = broadcast_json(look)
    if not exists and needed_bytes > free_bytes:
      raise DiskFullError(
        f"saving step {step} to {self.folder} needs {needed_bytes:,} bytes and {free_bytes:,} are free; free some space or "
        "point the workdir at another disk. Nothing was written, and the checkpoints before it are untouched."
      )
    return not exists

  def _start(self, step: int, arrays: Named, items: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp  # here, since importing it costs half a second

    from maxagent.checkpoint.handler import DigestSave

    if self._manager is None:
      logging.getLogger("absl").addFilter(_tells_more_than_our_error)  # adding it again changes nothing
      # lightweight_initialize: Orbax would read the metadata of old steps, and a damaged one would stop a healthy run.
      options = ocp.CheckpointManagerOptions(lightweight_initialize=True)  # keeps all steps: see _let_go
      registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
      # Said outright, since `restore` reads these files with TensorStore.
      registry.add("state", ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False))
      self._manager = ocp.CheckpointManager(self.folder, options=options, handler_registry=registry)
    saves = {name: ocp.args.JsonSave(value) for name, value in items.items()}
    digests = DigestSave(step=step, arrays=arrays, items=items)
    self._manager.save(
      step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(nested(arrays)), digests=digests, **saves), force=True
    )

  def _abandon(self, step: int, error: Exception) -> None:
    """After a failed save: no half-written folder stays behind, the next save starts afresh, the error says what happened."""
    self._manager = None  # not closed: closing would raise the same error again
    if is_first():
      self._remove_unfinished()
    text = f"step {step} could not be saved to {self.folder}"
    if "No space left on device" in str(error):
      free_bytes = shutil.disk_usage(self.folder).free
      raise DiskFullError(
        f"{text}: the disk filled up while it was written. What was written is gone again ({free_bytes:,} bytes are free now) "
        "and the checkpoints before it are untouched; free some space and start again."
      ) from error
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    raise CheckpointError(f"{text}: {reason}. The checkpoints before it are untouched.") from error

  def _quarantine(self, step: int, reason: str) -> None:
    self._forget_manager()  # it remembers the steps it saw
    failure = None
    if is_first():
      try:
        quarantine(self.folder, step, reason)
      except OSError as error:
        failure = str(error)
    if failure := broadcast_json(failure):  # said to all, and waited for by all
      raise CheckpointError(f"step {step} is damaged ({reason}) and could not be moved out of {self.folder}: {failure}.")

  def _forget_manager(self) -> None:
    manager, self._manager = self._manager, None
    if manager is not None:
      manager.close()

  def _let_go(self) -> None:
    """Removes all but the newest steps, each by a rename, then at leisure.

    Orbax would delete a step file by file under its number, and a kill would leave half of it there: 3 of 158 did.
    """
    doomed = self.folder / DELETING
    old = self.steps()[: -self._keep]
    if not old:
      return
    self._join_deletion()
    doomed.mkdir(exist_ok=True)
    for step in old:
      (self.folder / str(step)).rename(doomed / str(step))
    self._deletion = threading.Thread(target=shutil.rmtree, args=(doomed,), kwargs={"ignore_errors": True})
    self._deletion.start()

  def _join_deletion(self) -> None:
    if self._deletion.ident is not None:  # a thread that was never started cannot be waited for
      self._deletion.join()

  def _remove_unfinished(self) -> None:
    shutil.rmtree(self.folder / DELETING, ignore_errors=True)
    for path in self.folder.glob(UNFINISHED):
      shutil.rmtree(path, ignore_errors=True)


def _tells_more_than_our_error(record: logging.LogRecord) -> bool:
  """Drops Orbax's logged tracebacks of a failed save: pages, for each of its threads, of the error that `wait` raises."""
  return not (record.exc_info and "orbax" in record.pathname)


def _require_arrays(named: Named) -> Named:
  for name, leaf in named.items():
    if not isinstance(leaf, jax.Array) or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      kind = f"a random key ({leaf.dtype})" if isinstance(leaf, jax.Array) else type(leaf).__name__
      raise CheckpointError(
        f"the state's leaf {name} is {kind}; expected a jax.Array of numbers. Save jax.random.key_data of a key, and host "
        "values as metadata."
      )
  return named


def _json_items(data_state: dict[str, Any], config_json: str, metadata: dict[str, Any]) -> dict[str, Any]:
  """The JSON items as they will be read back (tuples are lists by then, keys are text), so that their digests will agree."""
  versions = {"python": platform.python_version(), "jax": jax.__version__}
  try:
    config = json.loads(config_json)
    return json.loads(json.dumps({"data": data_state, "config": config, "metadata": {**metadata, "versions": versions}}))
  except (TypeError, ValueError) as error:
    raise CheckpointError(f"data_state, config_json and metadata must be JSON; saving them gave: {error}.") from error
