"""A progress bar for a terminal, a line now and then for a log file."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LOG_EVERY_SECONDS = 15.0


class Progress:
  """Shows step, loss, tokens per second and the time left."""

  def __init__(self, steps: int, *, start: int = 0, shown: bool = True, console: Console | None = None) -> None:
    self._console = console or Console(quiet=not shown)
    self._shown = shown
    self._steps, self._start = steps, start
    self._began = self._logged = time.monotonic()
    text, state = TextColumn("{task.description}"), TextColumn("{task.fields[state]}")
    columns = (text, BarColumn(), MofNCompleteColumn(), state, TimeRemainingColumn())
    self._bar = RichProgress(*columns, console=self._console, disable=not self._console.is_terminal)
    self._task = self._bar.add_task("train", total=steps, completed=start, state="compiling")

  def __enter__(self) -> Self:
    self._bar.start()
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    self._bar.stop()

  def update(self, step: int, *, loss: float | None, tokens_per_second: float) -> None:
    """The step that has just been recorded, its loss in nats (None: no token was supervised) and how fast it went."""
    now = time.monotonic()
    state = f"loss {'–' if loss is None else f'{loss:.3f}'}  {tokens_per_second:,.0f} tokens/s"
    self._bar.update(self._task, completed=step, state=state)
    if self._shown and not self._console.is_terminal and (now - self._logged > LOG_EVERY_SECONDS or step == self._steps):
      self._logged = now
      left = (self._steps - step) * (now - self._began) / max(step - self._start, 1)  # evaluations included
      print(f"step {step}/{self._steps}  {state}  {left:.0f} s left", flush=True)


class Counter:
  """How many of something are done, in a terminal only: `update(done, total)`."""

  def __init__(self, unit: str, *, console: Console | None = None) -> None:
    console = console or Console()
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    self._bar = RichProgress(*columns, console=console, disable=not console.is_terminal, transient=True)
    self._task = self._bar.add_task(unit, total=None)

  def __enter__(self) -> Self:
    self._bar.start()
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    self._bar.stop()

  def update(self, done: int, total: int | None) -> None:
    """Moves the bar; `total=None` where the end is not known."""
    self._bar.update(self._task, completed=done, total=total)
