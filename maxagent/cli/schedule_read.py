"""What a run read of its sources, from its records; or what it will read, from the rows as they are planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from maxagent.config import Config
from maxagent.data.order import open_source
from maxagent.data.pipeline import open_pipeline
from maxagent.data.shards import ShardIndex
from maxagent.objectives.weights import supervised_table, weight_table
from maxagent.tracking.charts import Chart
from maxagent.tracking.shares import Phases, Reading, recorded, share_charts
from maxagent.tracking.writers import METRICS_FILE, read_metrics

MOST_ROWS = 20_000  # planned where nothing is recorded: about five seconds
_READINGS = 60


def phases(config: Config) -> Phases:
  """The asked shares of each source, by name."""
  names = [source.name for source in config.data.sources]
  return [(start, dict(zip(names, shares, strict=True))) for start, shares in config.data.phases]


def schedule_charts(config: Config, tokenizer_digest: str, workdir: Path | None) -> tuple[list[Chart], str]:
  """The shares over the schedule, and a sentence that says where they come from."""
  readings, origin = _recorded(config, workdir), "as the run recorded it"
  if not readings:
    readings = _planned(config, tokenizer_digest)
    steps = readings[-1].step
    of_all = "" if steps == config.training.steps else f", {steps:,} of {config.training.steps:,} steps"
    origin = f"as rows are planned, before any run{of_all}"
  indices = [_index(config, n, tokenizer_digest) for n in range(len(config.data.sources))]
  supervised = [_supervised(config, indices, reading.step) for reading in readings]
  charts = share_charts(
    phases(config), readings, supervised, steps=config.training.steps, asked_of=config.data.shares_of
  )  # fmt: skip
  return charts, f"Realised: {origin}."


def _recorded(config: Config, workdir: Path | None) -> list[Reading]:
  if workdir is None or not (workdir / METRICS_FILE).exists():
    return []
  readings = recorded(read_metrics(workdir / METRICS_FILE), [source.name for source in config.data.sources])
  every = max(1, len(readings) // _READINGS)
  return readings[::-1][::every][::-1]  # the last one is among them


def _planned(config: Config, tokenizer_digest: str) -> list[Reading]:
  """Every process plans all rows and reads those it holds: holding one, this one is nearly as fast as the plan."""
  steps = max(1, min(config.training.steps, MOST_ROWS // config.data.global_batch))
  every = -(-steps // _READINGS)
  readings = []
  with closing(
    open_pipeline(config.data, tokenizer_digest, rows=(0,), supervised=supervised_table(config.objective))
  ) as pipeline:
    for step in range(1, steps + 1):
      next(pipeline)
      if step % every == 0 or step == steps:
        readings.append(Reading(step, pipeline.report()["tokens"]))
  return readings


def _index(config: Config, number: int, tokenizer_digest: str) -> ShardIndex:
  with closing(open_source(config.data.sources[number], config.data, tokenizer_digest, "train")) as shards:
    return shards.index


def _supervised(config: Config, indices: Sequence[ShardIndex], step: int) -> Mapping[str, float]:
  """Which part of each source's tokens weighs something at a step."""
  wanted = np.asarray(weight_table(config.objective, step - 1)) > 0
  return {source.name: index.target_share(wanted) for source, index in zip(config.data.sources, indices, strict=True)}
