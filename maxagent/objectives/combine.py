"""The loss: weighted cross-entropy and z-loss as sums, which the caller divides once.

B batch, T length, S sources, K depths of multi-token prediction.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from maxagent.config import Config
from maxagent.data.batch import Batch
from maxagent.models import transformer
from maxagent.objectives.cross_entropy import weighted_losses
from maxagent.objectives.multi_token import depth_sums
from maxagent.objectives.weights import token_weights, weight_table
from maxagent.parallel.rules import Layout
from maxagent.traces.schema import Role


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSums:
  """Sums over tokens; add those of several batches, then divide. Losses of roles and sources are unweighted, in nats.

  On devices while the step runs, NumPy once fetched.
  """

  loss: Any  # float32 [], the numerator of the loss, of next tokens alone
  weight: Any  # float32 [], its denominator
  supervised: Any  # float32 [], tokens whose weight is not zero
  role_loss: Any  # float32 [16]
  role_tokens: Any  # float32 [16]
  source_loss: Any  # float32 [S]
  source_tokens: Any  # float32 [S]
  source_supervised: Any  # float32 [S], tokens whose weight is not zero
  mtp_loss: Any  # float32 [K], the numerators of multi-token prediction; K is 0 where it is off
  mtp_weight: Any  # float32 [K], their denominators


def loss_sums(
  params: Any,
  batch: Batch,
  *,
  config: Config,
  layout: Layout,
  step: int | Int[Array, ""] = 0,
  mtp_shares: Float[Array, " K"] | None = None,
) -> tuple[Float[Array, ""], LossSums]:
  """What to minimise, as a numerator over the weight of the next tokens, and the sums beside it.

  `step` says where the schedules of the weights are; `mtp_shares` come from `depth_shares`, and None leaves further tokens out.
  """
  hidden_BTD = transformer.hidden_states(
    params, batch.tokens, segments_BT=batch.segments, positions_BT=batch.positions, config=config.model, layout=layout
  )
  head_DV = transformer.head(params, config.model)
  weights_BT = token_weights(batch.roles, batch.statuses, batch.flags, weight_table(config.objective, step))
  loss, losses_BT = weighted_losses(hidden_BTD, head_DV, batch.targets, weights_BT, objective=config.objective, layout=layout)
  numerator, mtp_loss, mtp_weight = loss, jnp.zeros(0), jnp.zeros(0)
  if mtp_shares is not None:
    mtp_loss, mtp_weight = depth_sums(params, hidden_BTD, batch, weights_BT, config=config, layout=layout)
    numerator += jnp.sum(mtp_shares * mtp_loss)
  present_BT, supervised_BT = (x_BT.astype(jnp.float32) for x_BT in (batch.roles != Role.PAD, weights_BT > 0))
  sources = max(1, len(config.data.sources))
  role_loss, role_tokens = _sums_by(batch.roles, losses_BT, present_BT, len(Role))
  source_loss, source_tokens = _sums_by(batch.sources, losses_BT, present_BT, sources)
  _, source_supervised = _sums_by(batch.sources, losses_BT, supervised_BT, sources)
  return numerator, LossSums(
    loss=loss,
    weight=jnp.sum(weights_BT),
    supervised=jnp.sum(supervised_BT),
    role_loss=role_loss,
    role_tokens=role_tokens,
    source_loss=source_loss,
    source_tokens=source_tokens,
    source_supervised=source_supervised,
    mtp_loss=mtp_loss,
    mtp_weight=mtp_weight,
  )


def _sums_by(
  ids: UInt8[Array, "B T"], losses: Float[Array, "B T"], present: Float[Array, "B T"], count: int
) -> tuple[Float[Array, " S"], Float[Array, " S"]]:
  """Sums of losses and of tokens for each id below `count`."""
  member_BTS = jax.nn.one_hot(ids, count, dtype=jnp.float32) * present[..., None]
  return jnp.einsum("BTS,BT->S", member_BTS, losses), jnp.einsum("BTS->S", member_BTS)


def named_losses(sums: LossSums, sources: tuple[str, ...], *, prefix: str) -> dict[str, float]:
  """Mean losses by role and source, for those with a token: {prefix}/role/<role> and {prefix}/source/<source>. Host only.

  And {prefix}/mtp, weighted as the loss is: the mean over the depths of multi-token prediction that have a target.
  """
  named: dict[str, float] = {}
  for kind, names, losses, tokens in (
    ("role", [r.name.lower() for r in Role], sums.role_loss, sums.role_tokens),
    ("source", sources, sums.source_loss, sums.source_tokens),
  ):
    named |= {f"{prefix}/{kind}/{name}": float(losses[i] / tokens[i]) for i, name in enumerate(names) if tokens[i] > 0}
  if (asked := sums.mtp_weight > 0).any():
    named[f"{prefix}/mtp"] = float((sums.mtp_loss[asked] / sums.mtp_weight[asked]).mean())
  return named
