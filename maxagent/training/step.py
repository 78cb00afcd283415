"""One step: gradients over microbatches, clipping, the update. R rows, M microbatches."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from maxagent.config import Config
from maxagent.data.batch import Batch
from maxagent.objectives.combine import LossSums, loss_sums
from maxagent.objectives.multi_token import depth_shares
from maxagent.parallel.rules import Layout
from maxagent.training import schedule
from maxagent.training.state import TrainState

StepMetrics = dict[str, Any]  # device scalars, and `sums`: LossSums


def train_step(
  state: TrainState, batch: Batch, *, config: Config, optimizer: optax.GradientTransformation, layout: Layout
) -> tuple[TrainState, StepMetrics]:
  """Trains on one batch.

  The loss is one quotient over all devices and microbatches: gradients of numerators add up in float32 and are divided once.
  A batch without a supervised token changes nothing but the step; a loss or gradient that is not finite changes nothing at all,
  which the host learns one step later from `finite`.
  """
  sums, grads = _accumulate(state.params, batch, state.step, config=config, layout=layout)
  scale = jnp.where(sums.weight > 0, 1 / jnp.maximum(sums.weight, 1e-9), 0.0)
  loss = sums.loss * scale
  grad_norm = optax.tree.norm(grads) * scale
  if config.optimizer.clip_norm is not None:
    scale = scale * jnp.minimum(1.0, config.optimizer.clip_norm / jnp.maximum(grad_norm, 1e-9))
  grads = jax.tree.map(lambda g: g * scale, grads)

  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)

  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  update = finite & (sums.weight > 0)
  kept = jax.tree.map(lambda new, old: jnp.where(update, new, old), (params, opt_state), (state.params, state.opt_state))
  rate = schedule.scaled(config.optimizer.learning_rate, config.schedule, config.training.steps)(state.step)
  metrics = {"loss": loss, "grad_norm": grad_norm, "learning_rate": rate, "finite": finite, "sums": sums}
  return TrainState(step=state.step + finite.astype(jnp.int32), params=kept[0], opt_state=kept[1]), metrics


def _accumulate(params: Any, batch: Batch, step: Array, *, config: Config, layout: Layout) -> tuple[LossSums, Any]:
  """The sums over the whole batch, and the gradient of the numerator."""
  measured = functools.partial(loss_sums, config=config, layout=layout, step=step)
  shares = depth_shares(batch, config=config, step=step)
  parts = config.training.microbatches

  def gradient(part: Batch) -> tuple[LossSums, Any]:
    grads, sums = jax.grad(measured, has_aux=True)(params, part, mtp_shares=shares)
    return sums, grads

  if parts == 1:
    return gradient(batch)

  def split(rows_RT: Array) -> Array:
    # Row r goes to microbatch r % M, so every device keeps rows of its own.
    R, T = rows_RT.shape
    rows_MRT = jnp.moveaxis(rows_RT.reshape(R // parts, parts, T), 1, 0)
    return layout.constrain(rows_MRT, None, "batch", "length")

  def add(total: tuple[LossSums, Any], part: Batch) -> tuple[tuple[LossSums, Any], None]:
    return jax.tree.map(jnp.add, total, gradient(part)), None

  batches = jax.tree.map(split, batch)
  shapes = jax.eval_shape(gradient, jax.tree.map(lambda leaf: leaf[0], batches))
  zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  total, _ = jax.lax.scan(add, zero, batches)
  return total
