"""Cross-entropy of a large vocabulary without the logits of a whole row. B batch, T length, C chunk, D model, V vocabulary."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maxagent.config import Objective
from maxagent.parallel.rules import Layout, mesh_axes, spec
from maxagent_kernels.cross_entropy import linear_scores


def weighted_losses(
  hidden: Float[Array, "B T D"],
  head: Float[Array, "D V"],
  targets: Int[Array, "B T"],
  weights: Float[Array, "B T"],
  *,
  objective: Objective,
  layout: Layout,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
  """The sum of weight x (cross-entropy + z_loss x log(Z)^2), and every position's cross-entropy, which carries no gradient.

  z-loss: PaLM, arXiv 2204.02311, section 5.
  """
  losses_BT, log_z_BT = token_losses(
    hidden, head, targets, chunk_tokens=objective.chunk_tokens, layout=layout, backend=objective.cross_entropy
  )
  numerator = jnp.sum(weights * (losses_BT + objective.z_loss * jnp.square(log_z_BT)))
  return numerator, jax.lax.stop_gradient(losses_BT)


def token_losses(
  hidden: Float[Array, "B T D"],
  head: Float[Array, "D V"],
  targets: Int[Array, "B T"],
  *,
  chunk_tokens: int,
  layout: Layout,
  backend: str = "xla",
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Cross-entropy in nats and log of the partition function, both float32, of every position.

  Only [B, chunk_tokens, V] logits exist at a time, of a device's own rows, positions and vocabulary; the backward pass computes
  them again. With the backend "pallas" they never leave the chip. The product runs in the dtype of `hidden` and accumulates in
  float32. On a mesh the head is gathered once and its gradient reduced once, not for every chunk.
  """
  losses = functools.partial(_losses, chunk_tokens=chunk_tokens) if backend == "xla" else _fused_losses
  if layout.mesh is None:
    return losses(hidden, head, targets, vocab_axes=())
  vocab = "vocab" if layout.parts("vocab") > 1 else None
  copied_along = ("data", *mesh_axes("length"))

  def local(hidden: Array, head: Array, targets: Array) -> tuple[Array, Array]:
    whole = jax.lax.all_gather(head, mesh_axes("embed"), axis=0, tiled=True)
    # Said outside the loop over chunks, so that the sum of the head's gradients is outside it too.
    whole = jax.lax.pcast(whole, copied_along, to="varying")
    return losses(hidden, whole, targets, vocab_axes=mesh_axes(vocab))

  tokens = spec("batch", "length")
  in_specs = (spec("batch", "length", None), spec("embed", vocab), tokens)
  out_specs = (tokens, tokens)
  # A kernel's interpreter does not know which arrays differ between devices.
  mapped = jax.shard_map(local, mesh=layout.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=backend == "xla")
  return mapped(hidden, head, targets)


def _fused_losses(hidden: Array, head: Array, targets: Array, *, vocab_axes: tuple[str, ...]) -> tuple[Array, Array]:
  """By the TPU kernel, which other platforms interpret; `head` may be this device's part of the vocabulary."""
  first = head.shape[1] * jax.lax.axis_index(vocab_axes) if vocab_axes else 0
  on_tpu, elsewhere = (functools.partial(_scores, interpret=interpret) for interpret in (False, True))
  flat = hidden.reshape(-1, hidden.shape[-1]), head, targets.reshape(-1) - first
  # Chosen when it is compiled, not when it is traced: a program for a TPU may be compiled on a machine without one.
  log_z, target_logits = jax.lax.platform_dependent(*flat, tpu=on_tpu, default=elsewhere)
  if vocab_axes:
    greatest = jax.lax.pmax(jax.lax.stop_gradient(log_z), vocab_axes)
    log_z = greatest + jnp.log(jax.lax.psum(jnp.exp(log_z - greatest), vocab_axes))
    target_logits = jax.lax.psum(target_logits, vocab_axes)
  return (log_z - target_logits).reshape(targets.shape), log_z.reshape(targets.shape)


def _scores(hidden: Array, head: Array, targets: Array, *, interpret: bool) -> tuple[Array, Array]:
  return tuple(linear_scores(hidden, head, targets, interpret=interpret))


def _losses(
  hidden: Array, head: Array, targets: Array, *, chunk_tokens: int, vocab_axes: tuple[str, ...]
) -> tuple[Array, Array]:
  B, T, D = hidden.shape
  losses = jax.checkpoint(functools.partial(_chunk_losses, vocab_axes=vocab_axes))
  chunks = -(-T // chunk_tokens)
  if chunks == 1:
    return losses(hidden, head, targets)
  padding = chunks * chunk_tokens - T
  hidden_BTD = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
  targets_BT = jnp.pad(targets, ((0, 0), (0, padding)))
  hidden_nBCD = jnp.moveaxis(hidden_BTD.reshape(B, chunks, chunk_tokens, D), 1, 0)
  targets_nBC = jnp.moveaxis(targets_BT.reshape(B, chunks, chunk_tokens), 1, 0)
  losses_nBC, log_z_nBC = jax.lax.map(lambda chunk: losses(chunk[0], head, chunk[1]), (hidden_nBCD, targets_nBC))
  losses_BT = jnp.moveaxis(losses_nBC, 0, 1).reshape(B, -1)[:, :T]
  return losses_BT, jnp.moveaxis(log_z_nBC, 0, 1).reshape(B, -1)[:, :T]


def _chunk_losses(
  hidden: Float[Array, "B C D"], head: Float[Array, "D V"], targets: Int[Array, "B C"], *, vocab_axes: tuple[str, ...]
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
  """Of one chunk; `head` may be this device's part of a vocabulary that is cut along `vocab_axes`."""
  logits_BCV = jnp.einsum("BCD,DV->BCV", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
  if not vocab_axes:
    log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    target_logits_BC = jnp.take_along_axis(logits_BCV, targets[..., None], axis=-1)[..., 0]
    return log_z_BC - target_logits_BC, log_z_BC
  V = logits_BCV.shape[-1]
  greatest_BC = jax.lax.pmax(jax.lax.stop_gradient(logits_BCV).max(axis=-1), vocab_axes)
  log_z_BC = greatest_BC + jnp.log(jax.lax.psum(jnp.exp(logits_BCV - greatest_BC[..., None]).sum(axis=-1), vocab_axes))
  place_BC = targets - V * jax.lax.axis_index(vocab_axes)
  own_BC = (place_BC >= 0) & (place_BC < V)
  found_BC = jnp.take_along_axis(logits_BCV, jnp.clip(place_BC, 0, V - 1)[..., None], axis=-1)[..., 0]
  target_logits_BC = jax.lax.psum(jnp.where(own_BC, found_BC, 0.0), vocab_axes)
  return log_z_BC - target_logits_BC, log_z_BC
