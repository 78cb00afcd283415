"""What one step's metrics become: a flat record of numbers, on disk and on the progress bar."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from maxagent.config import Config
from maxagent.errors import NonFiniteError
from maxagent.objectives.combine import named_losses
from maxagent.parallel import processes
from maxagent.tracking.ledger import Ledger
from maxagent.tracking.progress import Progress
from maxagent.tracking.writers import MetricsWriter
from maxagent.training.digest import added
from maxagent.training.step import StepMetrics

Record = dict[str, float]


class Recorder:
  """Fetches the metrics of a finished step, names them and writes them; one record per step, from the first process."""

  def __init__(self, config: Config, workdir: Path, *, ledger: Ledger, start: int, digest: int = 0) -> None:
    self._config, self._ledger = config, ledger
    self.digest = digest  # of all batches up to the last step that was fetched; see training.digest
    self._sources = tuple(source.name for source in config.data.sources)
    first = processes.is_first()
    self._writer = MetricsWriter(workdir, resume_step=start or None) if first else None
    self._progress = Progress(config.training.steps, start=start, shown=first)
    self._fetched_at = time.monotonic()
    if self._writer and start and self._writer.last_step is None:
      print(f"metrics.jsonl has no record of the {start} steps before; it goes on from here")
    if self._writer and self._writer.cut_records:
      print(f"{self._writer.cut_records} records after step {start} were taken out of metrics.jsonl: their steps are run again")

  def __enter__(self) -> Self:
    self._progress.__enter__()
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    self._progress.__exit__(kind, error, trace)
    if self._writer:
      self._writer.close()

  @property
  def last_step(self) -> int | None:
    """The last step that has a record, on all processes."""
    step: int | None = processes.broadcast_json(self._writer.last_step if self._writer else None)
    return step

  def fetch(self, step: int, metrics: StepMetrics) -> Record:
    """The numbers of `step`, once; waits until the mesh has computed them.

    Raises:
      NonFiniteError: its loss or gradient is not a number.
    """
    values = jax.device_get(metrics)
    loss, grad_norm, sums = float(values["loss"]), float(values["grad_norm"]), values["sums"]
    if not values["finite"]:
      raise NonFiniteError(
        f"step {step}: loss {loss}, gradient norm {grad_norm}. Nothing was updated, nor saved since. Lower "
        f"optimizer.learning_rate, or look at the rows with `maxagent data inspect --workdir=WORKDIR --step={step}`."
      )
    self.digest = added(self.digest, values["digest"])
    now = time.monotonic()
    seconds, self._fetched_at = now - self._fetched_at, now
    # A batch without a supervised token has no loss; 0 would look like a step down.
    record = {"train/loss": loss} if sums.weight > 0 else {}
    record |= {
      "train/grad_norm": grad_norm,
      "train/learning_rate": float(values["learning_rate"]),
      "train/tokens_per_second": self._config.tokens_per_step / max(seconds, 1e-9),
      "train/supervised_tokens": float(sums.supervised),
      "train/data_digest": float(self.digest >> 11),  # as many bits as a float holds
    }
    # The supervised shares of the step; those of content tokens are in mixture/realised.
    shares = zip(self._sources, sums.source_supervised, strict=True)
    record |= {f"train/supervised/{name}": float(n / sums.supervised) for name, n in shares if sums.supervised}
    return record | named_losses(sums, self._sources, prefix="train/loss")

  def write(self, step: int, record: Record) -> None:
    """Appends the record of `step` and moves the bar."""
    tokens = step * self._config.tokens_per_step
    if self._writer:
      self._writer.write(step, record, tokens=tokens, seconds=self._ledger.wall_seconds)
    self._progress.update(step, loss=record.get("train/loss"), tokens_per_second=record["train/tokens_per_second"])
    self._fetched_at = time.monotonic()  # an evaluation between the two is no part of the next step


def mixture_metrics(report: Mapping[str, Any]) -> Record:
  """The data pipeline's report, named: mixture/asked/<source>, mixture/realised/<source>, mixture/fill and the like."""
  parts = ("asked", "realised", "epochs", "spent", "quarantined")
  by_source = {f"mixture/{part}/{source}": float(n) for part in parts for source, n in report[part].items()}
  return by_source | {f"mixture/{name}": float(report[name]) for name in ("fill", "added")}
