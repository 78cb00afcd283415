"""The loop: batches in, records and checkpoints out. An evaluation is a callable to it; what that measures it does not know."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maxagent import config as configs
from maxagent.checkpoint import Checkpoints, locate, restore_params
from maxagent.config import Config
from maxagent.data.batch import FIELD_DTYPES, Batch
from maxagent.data.pipeline import Pipeline, open_pipeline
from maxagent.errors import MeshError, TokenizerMismatchError
from maxagent.objectives.weights import supervised_table
from maxagent.parallel import processes
from maxagent.parallel.rules import Layout, check_model_fits
from maxagent.tokenizer import Tokenizer
from maxagent.tracking.ledger import Ledger
from maxagent.training import optimizer as optimizers
from maxagent.training import state as states
from maxagent.training.digest import batch_digest
from maxagent.training.faults import StopSignal
from maxagent.training.records import Record, Recorder, mixture_metrics
from maxagent.training.state import TrainState
from maxagent.training.step import StepMetrics, train_step
from maxagent.training.watchdog import Watchdog
from maxagent.training.workdir import check, claim, held, require_tokenizer

# Called with the parameters, the step and a question, "are we told to stop?", that all processes must ask alike. What it
# returns joins the step's record; None says that it stopped before its end.
Evaluate = Callable[[Any, int, Callable[[], bool]], Record | None]
_VOCAB_MULTIPLE = 128
CompiledStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, StepMetrics]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """How a call of `train` ended."""

  step: int
  preempted: bool


def train(config: Config, workdir: Path, *, layout: Layout, evaluate: Evaluate | None = None) -> Outcome:
  """Trains until `config.training.steps`, going on from the last good checkpoint of `workdir` if it holds one.

  Raises:
    WorkdirMismatchError: the workdir holds another config's run.
    WorkdirBusyError: another process trains in it.
    TokenizerMismatchError: the tokenizer does not fit the model, the shards or the weights of `init_from`.
    NonFiniteError: a loss or gradient is not a number; the last good checkpoint stays.
  """
  with held(workdir), StopSignal() as stop, Watchdog(workdir, seconds=config.training.hang_seconds):
    check(config, workdir)
    return _train(config, workdir, layout=layout, evaluate=evaluate, stop=stop)


def _train(config: Config, workdir: Path, *, layout: Layout, evaluate: Evaluate | None, stop: StopSignal) -> Outcome:
  tokenizer, pipeline = _open_data(config, layout)
  optimizer = optimizers.build(config)
  checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
  start = _restore_or_create(config, optimizer, layout, checkpoints=checkpoints, pipeline=pipeline, tokenizer=tokenizer)
  state, ledger, step = start.state, start.ledger, int(start.state.step)
  with ledger.phase("compile"):
    # For every length of rows still to come, so that one that does not fit into memory is known now, not at its first step.
    steps = {shape[1:]: compile_step(config, optimizer, layout, shape[1:]) for shape in config.shapes[pipeline.phase :]}
  claim(config, workdir)
  recorder = Recorder(config, workdir, ledger=ledger, start=step, digest=start.digest)
  pending: tuple[int, StepMetrics] | None = None

  with closing(checkpoints), closing(pipeline), recorder:

    def save(unmeasured: Record | None) -> None:
      metadata = {"tokens": step * config.tokens_per_step, "tokenizer": tokenizer.digest, "unmeasured": unmeasured}
      metadata |= {"digest": recorder.digest, "ledger": ledger.to_dict()}
      with ledger.phase("checkpoint"):
        _save(checkpoints, config, state, step=step, pipeline=pipeline, metadata=metadata)

    def measured(record: Record) -> bool:
      with ledger.phase("eval"):
        found = evaluate(state.params, step, stop.agreed) if evaluate else {}
      if found is not None:
        recorder.write(step, record | found)
      return found is not None

    # A kill may have come between the save of a step and the end of its evaluation: that is done first.
    owed = start.unmeasured is not None and recorder.last_step != step and not measured(start.unmeasured)
    stopping = owed or stop.agreed()  # told while it compiled
    while step < config.training.steps and not stopping:
      step += 1
      with ledger.phase("data"):
        batch, told = processes.to_global(next(pipeline), layout), processes.any_of(stop.received, layout)
      with ledger.phase("step"), jax.transfer_guard("disallow"):
        state, metrics = steps[batch.tokens.shape](state, batch, told)  # dispatched, not awaited
        if pending:  # the host reads step n - 1 while the mesh computes n
          recorder.write(pending[0], recorder.fetch(*pending))
          stopping = bool(pending[1]["stop"])
        stopping |= stop.received and processes.alone()
        pending = (step, metrics)
      last = step == config.training.steps
      measures = evaluate is not None and (last or step % config.evaluation.every_steps == 0)
      saves = last or stopping or step % config.checkpoint.every_steps == 0
      if not (measures or saves):
        continue
      with ledger.phase("step"):
        record = recorder.fetch(*pending) | mixture_metrics(pipeline.report())  # raises before a bad state could be saved
        pending = None
      if not measures:
        recorder.write(step, record)
      if saves:
        save(record if measures else None)
      if measures and (owed := stopping or not measured(record)):
        stopping = True
        if not saves:
          save(record)
    with ledger.phase("checkpoint"):
      checkpoints.wait()
  if processes.is_first():
    ledger.save(workdir)
  return Outcome(step=step, preempted=step < config.training.steps or owed)


def compile_step(
  config: Config, optimizer: optax.GradientTransformation, layout: Layout, shape: tuple[int, int] | None = None
) -> CompiledStep:
  """The step, compiled ahead of time; the state it is given is consumed. Its `stop` is whether any of the flags was set.

  `shape` is the batch's (rows, tokens of a row); None is that of the run's first phase.
  """

  def step(state: TrainState, batch: Batch, stop: jax.Array) -> tuple[TrainState, StepMetrics]:
    digest = batch_digest(batch, state.step)
    state, metrics = train_step(state, batch, config=config, optimizer=optimizer, layout=layout)
    return state, metrics | {"stop": jnp.any(stop), "digest": digest}

  rows = layout.sharding("batch", "length")
  shape = shape or config.shapes[0][1:]
  batch = Batch(**{name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, dtype in FIELD_DTYPES.items()})
  outputs = (states.shardings(config, optimizer, layout), layout.sharding())
  arguments = (states.abstract(config, optimizer, layout), batch, processes.any_of(False, layout))
  return jax.jit(step, donate_argnums=0, out_shardings=outputs).lower(*arguments).compile()


def _open_data(config: Config, layout: Layout) -> tuple[Tokenizer, Pipeline]:
  tokenizer = Tokenizer.load(config.data.tokenizer)
  size = tokenizer.vocab_size
  padded = -(-size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
  if config.model.vocab_size not in (size, padded):
    raise TokenizerMismatchError(
      f"{config.data.tokenizer} has {size} tokens and model.vocab_size is {config.model.vocab_size}; "
      f"set it to {size}, or to {padded}, which meshes can cut ({_VOCAB_MULTIPLE} divides it), or name another tokenizer."
    )
  if layout.mesh is not None:
    _check_shapes_fit(config, layout)
  pipeline = open_pipeline(
    config.data,
    tokenizer.digest,
    rows=lambda count: processes.local_rows(layout, count),
    supervised=supervised_table(config.objective),
  )
  return tokenizer, pipeline


def _check_shapes_fit(config: Config, layout: Layout) -> None:
  """Raises MeshError now for what the mesh could not hold later."""
  assert layout.mesh is not None
  parts = config.training.microbatches
  for start, rows, length in config.shapes:
    try:
      check_model_fits(layout.mesh, config.model, batch=rows // parts, length=length)
    except MeshError as error:
      if not start:
        raise
      fitting, devices = math.gcd(rows // parts, layout.parts("batch")), layout.mesh.size
      cure = f"mesh.data x mesh.fsdp = {fitting} and mesh.context = {layout.parts('length') * layout.parts('batch') // fitting}"
      raise MeshError(
        f"data.lengths: from {start:g} content tokens on, a step has {rows} rows of {length} tokens. {error} For the whole run "
        f"on these {devices} devices, such as {cure}; or a larger data.global_batch."
      ) from error


@dataclasses.dataclass(frozen=True)
class _Start:
  """Where a run begins; `unmeasured` is the record of its step if that was saved and its evaluation never ended."""

  state: TrainState
  ledger: Ledger
  unmeasured: Record | None = None
  digest: int = 0


def _restore_or_create(
  config: Config, optimizer: optax.GradientTransformation, layout: Layout, *, checkpoints: Checkpoints, pipeline: Pipeline,
  tokenizer: Tokenizer,
) -> _Start:  # fmt: skip
  """The last good state, with the data put back to where it was; else a fresh one, with `init_from`'s weights if named."""
  started = time.perf_counter()
  abstract = states.abstract(config, optimizer, layout)
  restored = checkpoints.restore_latest_good(abstract)
  if restored:
    if processes.is_first():
      for step, reason in restored.skipped:
        print(f"the checkpoint of step {step} is damaged and was set aside: {reason}")
      print(f"going on from step {restored.step}")
    pipeline.set_state(restored.data_state)
    metadata = restored.metadata
    start = _Start(restored.state, Ledger.from_dict(metadata["ledger"]), metadata["unmeasured"], metadata["digest"])
  else:
    start = _Start(states.create(config, optimizer, layout), Ledger())
    if config.training.init_from:
      folder, at = locate(config.training.init_from)
      weights = restore_params(folder, abstract.params, at)
      require_tokenizer(weights.metadata, tokenizer, checkpoint=folder)
      start = dataclasses.replace(start, state=dataclasses.replace(start.state, params=weights.state))
  start.ledger.add("restore" if restored else "initialise", time.perf_counter() - started)
  return start


def _save(
  checkpoints: Checkpoints, config: Config, state: TrainState, *, step: int, pipeline: Pipeline, metadata: dict[str, Any]
) -> None:
  metadata = processes.broadcast_json(metadata)
  checkpoints.save(step, state, data_state=pipeline.get_state(), config_json=configs.to_json(config), metadata=metadata)
