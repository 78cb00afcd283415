"""The loop: batches in, records and checkpoints out. An evaluation is a callable to it; what that measures it does not know."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import optax

from maxagent import config as configs
from maxagent.checkpoint import Checkpoints, restore_params
from maxagent.config import Config
from maxagent.data.batch import FIELD_DTYPES, Batch
from maxagent.data.pipeline import Pipeline, merge_states, open_pipeline
from maxagent.errors import TokenizerMismatchError
from maxagent.parallel import processes
from maxagent.parallel.rules import Layout, check_model_fits
from maxagent.tokenizer import Tokenizer
from maxagent.tracking.ledger import Ledger
from maxagent.tracking.writers import MetricsWriter
from maxagent.training import optimizer as optimizers
from maxagent.training import state as states
from maxagent.training.faults import StopSignal
from maxagent.training.records import Record, Recorder, mixture_metrics
from maxagent.training.state import TrainState
from maxagent.training.step import StepMetrics, train_step
from maxagent.training.workdir import claim

# Called with the parameters and the step; what it returns joins the step's record.
Evaluate = Callable[[Any, int], Record]
CompiledStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """How a call of `train` ended."""

  step: int
  preempted: bool
  record: Record  # the last one written


def train(config: Config, workdir: Path, *, layout: Layout, evaluate: Evaluate | None = None) -> Outcome:
  """Trains until `config.training.steps`, going on from the last good checkpoint of `workdir` if it holds one.

  Raises:
    WorkdirMismatchError: the workdir holds another config's run.
    TokenizerMismatchError: the tokenizer does not fit the model or the shards.
    NonFiniteError: a loss or gradient is not a number; the last good checkpoint stays.
  """
  claim(config, workdir)
  pipeline = _open_data(config, layout)
  optimizer = optimizers.build(config)
  checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
  state, ledger = _restore_or_create(config, optimizer, layout, checkpoints=checkpoints, pipeline=pipeline)
  with ledger.phase("compile"):
    compiled = compile_step(config, optimizer, layout)

  step = start = int(state.step)
  recorder = Recorder(config, writer=MetricsWriter(workdir, resume_step=start or None), ledger=ledger, start=start)
  pending: tuple[int, StepMetrics] | None = None
  record: Record = {}
  stopping = False
  with closing(checkpoints), closing(pipeline), recorder, StopSignal() as stop:
    while step < config.training.steps and not stopping:
      step += 1
      with ledger.phase("data"):
        batch = processes.to_global(next(pipeline), layout)
      with ledger.phase("step"):
        state, metrics = compiled(state, batch)  # dispatched, not awaited
        if pending:  # the host reads step n - 1 while the mesh computes n
          recorder.write(pending[0], recorder.fetch(*pending))
        pending = (step, metrics)
      stopping = stop.agreed()
      last = step == config.training.steps
      measures = evaluate is not None and (last or step % config.evaluation.every_steps == 0)
      saves = last or stopping or step % config.checkpoint.every_steps == 0
      if not (measures or saves):
        continue
      with ledger.phase("step"):
        record = recorder.fetch(*pending) | mixture_metrics(pipeline.report())  # raises before a bad state could be saved
        pending = None
      if measures and evaluate:
        with ledger.phase("eval"):
          record |= evaluate(state.params, step)
      recorder.write(step, record)
      if saves:
        with ledger.phase("checkpoint"):
          _save(checkpoints, config, state, step=step, pipeline=pipeline, ledger=ledger)
        ledger.save(workdir)
    with ledger.phase("checkpoint"):
      checkpoints.wait()
  ledger.save(workdir)
  return Outcome(step=step, preempted=step < config.training.steps, record=record)


def compile_step(config: Config, optimizer: optax.GradientTransformation, layout: Layout) -> CompiledStep:
  """The step, compiled ahead of time; the state it is given is consumed."""
  step = functools.partial(train_step, config=config, optimizer=optimizer, layout=layout)
  shape = (config.data.global_batch, config.data.sequence_tokens)
  rows = layout.sharding("batch", "length")
  batch = Batch(**{name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, dtype in FIELD_DTYPES.items()})
  state = states.abstract(config, optimizer, layout)
  outputs = (states.shardings(config, optimizer, layout), layout.sharding())
  return jax.jit(step, donate_argnums=0, out_shardings=outputs).lower(state, batch).compile()


def _open_data(config: Config, layout: Layout) -> Pipeline:
  tokenizer = Tokenizer.load(config.data.tokenizer)
  if tokenizer.vocab_size != config.model.vocab_size:
    raise TokenizerMismatchError(
      f"{config.data.tokenizer} has {tokenizer.vocab_size} tokens and model.vocab_size is {config.model.vocab_size}; "
      "they must be equal: set model.vocab_size or name another tokenizer."
    )
  if layout.mesh is not None:
    rows = config.data.global_batch // config.training.microbatches
    check_model_fits(layout.mesh, config.model, batch=rows, length=config.data.sequence_tokens)
  return open_pipeline(config.data, tokenizer.digest, rows=processes.local_rows(layout, config.data.global_batch))


def _restore_or_create(
  config: Config, optimizer: optax.GradientTransformation, layout: Layout, *, checkpoints: Checkpoints, pipeline: Pipeline
) -> tuple[TrainState, Ledger]:
  """The last good state, with the data put back to where it was; else a fresh one, with `init_from`'s weights if named."""
  started = time.perf_counter()
  abstract = states.abstract(config, optimizer, layout)
  restored = checkpoints.restore_latest_good(abstract)
  if restored:
    for step, reason in restored.skipped:
      print(f"the checkpoint of step {step} is damaged and was set aside: {reason}")
    print(f"going on from step {restored.step}")
    pipeline.set_state(restored.data_state)
    state, ledger = restored.state, Ledger.from_dict(restored.metadata["ledger"])
  else:
    state, ledger = states.create(config, optimizer, layout), Ledger()
    if config.training.init_from:
      state = dataclasses.replace(state, params=restore_params(config.training.init_from, abstract.params).state)
  ledger.add("restore", time.perf_counter() - started)
  return state, ledger


def _save(
  checkpoints: Checkpoints, config: Config, state: TrainState, *, step: int, pipeline: Pipeline, ledger: Ledger
) -> None:
  positions = merge_states(processes.gather_json(pipeline.get_state()))
  metadata = {"tokens": step * config.tokens_per_step, "ledger": ledger.to_dict()}
  checkpoints.save(step, state, data_state=positions, config_json=configs.to_json(config), metadata=metadata)
