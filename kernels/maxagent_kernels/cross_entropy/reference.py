"""Linear cross-entropy written out, to test against. N tokens, D model, V vocabulary."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def linear_scores_reference(hidden_ND: jax.Array, head_DV: jax.Array, targets_N: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The log-sum-exp of each token's logits, in nats, and its target's logit (0 where that is no column): float32 [N] each.

  The product takes `hidden`'s dtype and accumulates in float32. Holds all N x V logits.
  """
  head_DV = head_DV.astype(hidden_ND.dtype)
  logits_NV = jnp.einsum(
    "ND,DV->NV", hidden_ND, head_DV, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
  )
  return jax.nn.logsumexp(logits_NV, axis=1), (jax.nn.one_hot(targets_N, logits_NV.shape[1]) * logits_NV).sum(1)
