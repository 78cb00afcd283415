"""Linear cross-entropy for TPUs: hidden states times head to losses, forward and backward, with no logits in HBM.

N tokens, D model, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maxagent_kernels.cross_entropy.backward import backward
from maxagent_kernels.cross_entropy.backward import scratch as backward_scratch
from maxagent_kernels.cross_entropy.forward import forward
from maxagent_kernels.cross_entropy.forward import scratch as forward_scratch
from maxagent_kernels.cross_entropy.plan import BACKWARD, FORWARD, Blocks, Plan, make_plan, whole

NOWHERE = -(2**30)  # far from every tile: the place of a target that is no column
Setup = tuple[Blocks, Blocks, Any]  # forward's and backward's blocks, and whether to interpret


class Scores(NamedTuple):
  """What cross-entropy asks of a token's logits; float32 [N], in nats."""

  log_z: jax.Array  # the log-sum-exp over these columns
  target_logit: jax.Array  # 0 where the target is no column of these


def linear_scores(
  hidden: jax.Array,
  head: jax.Array,
  targets: jax.Array,
  *,
  blocks: tuple[Blocks, Blocks] = (FORWARD, BACKWARD),
  interpret: Any = False,
) -> Scores:
  """Log-sum-exp and target logit of hidden [N, D] times head [D, V]; the cross-entropy is their difference.

  The head may be a part of the vocabulary's columns: the log-sum-exp of the parts' log_z and the sum of their target logits
  are those of the whole; `targets` [N] then count from the part's first column and may lie outside. Products take hidden's
  dtype and accumulate in float32. Sizes need not be multiples of the blocks (forward's, backward's), but a V that is no
  multiple of 128 costs padded copies of head and gradient. Tokens whose cotangents are zero cost the backward pass nothing
  where they fill a tile.
  """
  if hidden.ndim != 2 or targets.shape != hidden.shape[:1] or head.shape[:1] != hidden.shape[1:]:
    raise ValueError(
      f"hidden is {hidden.shape}, head {head.shape} and targets {targets.shape}: expected [N, D], [D, V] and [N]."
    )
  if not jnp.issubdtype(targets.dtype, jnp.integer):
    raise ValueError(f"targets are {targets.dtype}: expected column numbers, such as int32.")
  return Scores(*_scores((*blocks, interpret), hidden, head, targets.astype(jnp.int32)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(setup: Setup, hidden: jax.Array, head: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
  return _forward(setup, hidden, head, targets)[0]


def _forward(
  setup: Setup, hidden: jax.Array, head: jax.Array, targets: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
  plan = make_plan(hidden, head, setup[0], forward_scratch, setup[2])
  scores_2N = forward(*_padded(plan, hidden, head, targets), plan=plan)
  log_z, chosen = scores_2N[:, : hidden.shape[0]]
  return (log_z, chosen), (hidden, head, targets, log_z)


def _backward(setup: Setup, kept: tuple[jax.Array, ...], given: tuple[jax.Array, ...]) -> tuple[Any, ...]:
  hidden, head, targets, log_z = kept
  plan = make_plan(hidden, head, setup[1], backward_scratch, setup[2])
  statistics_3N = jnp.stack([log_z, *given])
  statistics_3N = jnp.pad(statistics_3N, ((0, 0), (0, -hidden.shape[0] % plan.tokens)))
  hidden_ND, head_DV, targets_N = _padded(plan, hidden, head, targets)
  d_hidden, d_head = backward(hidden_ND, head_DV, targets_N, statistics_3N, plan=plan)
  d_head = d_head[: head.shape[0], : head.shape[1]].astype(head.dtype)
  return d_hidden[: hidden.shape[0], : hidden.shape[1]], d_head, None


_scores.defvjp(_forward, _backward)


def _padded(plan: Plan, hidden: jax.Array, head: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
  """Whole tiles of tokens, and whole lanes of model and vocabulary; targets that are no column lie nowhere."""
  more, deeper, wider = -hidden.shape[0] % plan.tokens, plan.model - hidden.shape[1], whole(head.shape[1]) - head.shape[1]
  targets = jnp.where((targets >= 0) & (targets < head.shape[1]), targets, NOWHERE)
  return (
    jnp.pad(hidden, ((0, more), (0, deeper))),
    jnp.pad(head, ((0, deeper), (0, wider))),
    jnp.pad(targets, (0, more), constant_values=NOWHERE),
  )
