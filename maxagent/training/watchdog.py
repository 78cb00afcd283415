"""Ends a run of several processes when one of them stops answering, so that a launcher starts it again at once.

A process that is stopped, swapped out or cut off leaves all others waiting in a collective: for minutes where the runtime's own
timeout strikes, and then without a word of what they did; for hours where it does not. Here every process gives a sign of life
from a thread of its own, WORKDIR/alive/PROCESS, and looks at that of the next one: each reads one small file, and before every
row of silent processes there is a live one that looks. Whoever misses a sign raises the alarm, a file that
all look for: each writes the stacks of all its threads to WORKDIR/hangs/TIME/stacks-PROCESS.txt and exits with 75 (try again).

Time is counted in looks of one's own, six to the time allowed, not read from a clock: a machine that was asleep, with all that
runs on it, accuses nobody when it wakes. A sign is given however long a step, an evaluation or a compilation takes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import jax

from maxagent.errors import MaxagentError
from maxagent.parallel import processes
from maxagent.training.faults import PREEMPTED_EXIT

_LOOKS = 6  # in the time allowed
_MISSED = 4  # looks in a row without a new sign: with one look before them and a busy machine, within the time allowed
_ENDED = "ended"  # the sign of a process that is done: nobody waits for its next one


class Watchdog:
  """While its block runs, a process that stops answering is noticed within `seconds`, and the run ends; None watches nothing.

  All others have left after another two thirds of `seconds`, in which they write their stacks.
  """

  def __init__(self, workdir: Path, *, seconds: float | None) -> None:
    self._workdir, self._every = workdir, (seconds or 0) / _LOOKS
    self._on = seconds is not None and not processes.alone()
    self._process, self._next = jax.process_index(), (jax.process_index() + 1) % jax.process_count()
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

  def __enter__(self) -> Self:
    if self._on:
      self._signs.mkdir(parents=True, exist_ok=True)
      if processes.is_first():
        self._alarm.unlink(missing_ok=True)
      self._give_sign("0")
      processes.barrier("watchdog")  # no sign of an earlier start is left, and no alarm
      self._thread.start()
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    if not self._on:
      return
    meant = error is None or isinstance(error, (MaxagentError, KeyboardInterrupt, SystemExit))
    if not meant:
      # A collective fails when a process dies. Its neighbour misses it soon, and the alarm then ends this process for a retry;
      # without an alarm the error was our own.
      told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
      print(f"{told}; seeing whether another process has died", file=sys.stderr, flush=True)
      time.sleep(self._every * 2 * _LOOKS)
    self._done.set()
    self._thread.join()
    with contextlib.suppress(OSError):  # it would hide what went wrong
      self._give_sign(_ENDED if meant else "failed")

  @property
  def _signs(self) -> Path:
    return self._workdir / "alive"

  @property
  def _alarm(self) -> Path:
    return self._signs / "alarm"

  def _watch(self) -> None:
    looks, last, missed = 0, "", 0
    while not self._done.wait(self._every):
      looks += 1
      try:
        if self._alarm.exists():
          self._leave(self._alarm.read_text())
        self._give_sign(str(looks))
        sign = (self._signs / str(self._next)).read_text()
      except OSError:
        continue  # the disk is gone, perhaps for us alone: then our neighbour misses our sign
      missed = missed + 1 if sign == last != _ENDED else 0
      last = sign
      if missed == _MISSED:
        self._raise_alarm()

  def _give_sign(self, sign: str) -> None:
    self._replace(self._signs / str(self._process), sign)

  def _replace(self, path: Path, text: str) -> None:
    """Never half a sign, and never half an alarm."""
    temporary = path.with_name(f"{path.name}.{self._process}.tmp")
    temporary.write_text(text)
    temporary.replace(path)

  def _raise_alarm(self) -> None:
    at = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    silent = f"process {self._next} of {jax.process_count()} gave no sign for {self._every * _MISSED:.3g} s"
    told = f"{at}\n{silent} (process {self._process} saw it)"
    with contextlib.suppress(OSError):  # without a disk the others have to see it for themselves
      self._replace(self._alarm, told)
    self._leave(told)

  def _leave(self, told: str) -> None:
    at, what = told.split("\n")
    folder = self._workdir / "hangs" / at
    try:
      folder.mkdir(parents=True, exist_ok=True)
      path = folder / f"stacks-{self._process}.txt"
      with open(path, "w") as file:
        file.write(f"{what}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
      print(f"{what}; the stacks are in {path}; run the same command to go on", file=sys.stderr, flush=True)
    finally:
      # The first to leave breaks the others' collectives, so all have a look's time to write. Process 0 takes the coordinator
      # with it, at which the runtime aborts whoever is left (exit 134, which no launcher takes for "try again"): it goes last.
      time.sleep(self._every * (4 if processes.is_first() else 1.5))
      os._exit(PREEMPTED_EXIT)  # nothing can be saved or closed: the main thread waits in a collective
