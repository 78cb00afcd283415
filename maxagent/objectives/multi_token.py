"""The loss of predicting further tokens: at depth k, place i is asked for target i + k. B batch, T length, D model, K depths.

A depth's loss is a mean over its own targets, by the weights that these have as next tokens; the objective counts the mean over
depths `mtp_weight` times. Source: DeepSeek-V3, arXiv 2412.19437, section 2.2.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maxagent.config import Config
from maxagent.data.batch import Batch
from maxagent.models import transformer
from maxagent.models.multi_token import ahead
from maxagent.objectives.cross_entropy import weighted_losses
from maxagent.objectives.weights import token_weights, weight_table
from maxagent.parallel.rules import Layout


def depth_shares(batch: Batch, *, config: Config, step: int | Int[Array, ""]) -> Float[Array, " K"] | None:
  """What each depth's weighted sum counts beside that of the next token, both to be divided by the weights of the next tokens.

  Weights depend on no parameter, so the denominators of a whole batch are known before its first microbatch, and one
  accumulated gradient serves all of them. None for a model without such depths.
  """
  K = config.model.mtp_depth
  if not K:
    return None
  weights_BT = token_weights(batch.roles, batch.statuses, batch.flags, weight_table(config.objective, step))
  sums_K = jnp.stack([jnp.sum(_weights_ahead(weights_BT, batch.segments, k)) for k in range(1, K + 1)])
  ratios_K = jnp.sum(weights_BT) / jnp.where(sums_K > 0, sums_K, 1.0)
  return config.objective.mtp_weight / K * jnp.where(sums_K > 0, ratios_K, 0.0)


def depth_sums(
  params: Any, hidden: Float[Array, "B T D"], batch: Batch, weights: Float[Array, "B T"], *, config: Config, layout: Layout
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
  """Each depth's sum of weighted losses, and its sum of weights."""
  states = transformer.further_states(
    params,
    hidden,
    batch.tokens,
    segments_BT=batch.segments,
    positions_BT=batch.positions,
    config=config.model,
    layout=layout,
  )
  head_DV = transformer.head(params, config.model)
  numerators, denominators = [], []
  for k, state_BTD in enumerate(states, start=1):
    weights_BT = _weights_ahead(weights, batch.segments, k)
    targets_BT = ahead(batch.targets, k)
    numerator, _ = weighted_losses(state_BTD, head_DV, targets_BT, weights_BT, objective=config.objective, layout=layout)
    numerators.append(numerator)
    denominators.append(jnp.sum(weights_BT))
  return jnp.stack(numerators), jnp.stack(denominators)


def _weights_ahead(weights_BT: Array, segments_BT: Array, k: int) -> Float[Array, "B T"]:
  """The weights of the targets k places further on, 0 where another document or the row's end lies between.

  weights  [1, 1, 0, 1, 0]
  segments [1, 1, 1, 2, 2]
  k = 1 -> [1, 0, 0, 0, 0]
  """
  return jnp.where(ahead(segments_BT, k) == segments_BT, ahead(weights_BT, k), 0.0)
