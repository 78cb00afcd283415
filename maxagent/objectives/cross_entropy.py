"""Cross-entropy of a large vocabulary without the logits of a whole row. B batch, T length, C chunk, D model, V vocabulary."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_losses(
  hidden: Float[Array, "B T D"], head: Float[Array, "D V"], targets: Int[Array, "B T"], *, chunk_tokens: int
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Cross-entropy in nats and log of the partition function, both float32, of every position.

  Only [B, chunk_tokens, V] logits exist at a time; the backward pass computes them again. The product runs in the dtype of
  `hidden` and accumulates in float32.
  """
  B, T, D = hidden.shape
  chunks = -(-T // chunk_tokens)
  if chunks == 1:
    return _chunk_losses(hidden, head, targets)
  padding = chunks * chunk_tokens - T
  hidden_BTD = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
  targets_BT = jnp.pad(targets, ((0, 0), (0, padding)))
  hidden_nBCD = jnp.moveaxis(hidden_BTD.reshape(B, chunks, chunk_tokens, D), 1, 0)
  targets_nBC = jnp.moveaxis(targets_BT.reshape(B, chunks, chunk_tokens), 1, 0)
  losses_nBC, log_z_nBC = jax.lax.map(lambda chunk: _chunk_losses(chunk[0], head, chunk[1]), (hidden_nBCD, targets_nBC))
  losses_BT = jnp.moveaxis(losses_nBC, 0, 1).reshape(B, -1)[:, :T]
  return losses_BT, jnp.moveaxis(log_z_nBC, 0, 1).reshape(B, -1)[:, :T]


@jax.checkpoint
def _chunk_losses(
  hidden: Float[Array, "B C D"], head: Float[Array, "D V"], targets: Int[Array, "B C"]
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
  logits_BCV = jnp.einsum("BCD,DV->BCV", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
  log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
  target_logits_BC = jnp.take_along_axis(logits_BCV, targets[..., None], axis=-1)[..., 0]
  return log_z_BC - target_logits_BC, log_z_BC
