"""The projections around attention. B batch, T length, D model, N query heads, K key/value heads, H head size."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from maxagent.config.schema import Model
from maxagent.models.norm import RMSNorm
from maxagent.models.parameters import matrix
from maxagent.models.rope import Rotation, rotate
from maxagent.parallel.rules import Layout


class Attention(nnx.Module):
  """Queries, keys and values out of the residual stream, and attention's result back into it; who attends is the caller's."""

  def __init__(self, config: Model, *, key: Array) -> None:
    wide, size = config.hidden_size, config.head_size
    query, keys, values, out = jax.random.split(key, 4)
    self.query = matrix(query, (wide, config.heads, size), fan_in=wide, axes=("embed", "heads", "head"))
    self.key = matrix(keys, (wide, config.kv_heads, size), fan_in=wide, axes=("embed", "kv_heads", "head"))
    self.value = matrix(values, (wide, config.kv_heads, size), fan_in=wide, axes=("embed", "kv_heads", "head"))
    self.out = matrix(
      out, (config.heads, size, wide), fan_in=config.heads * size, axes=("heads", "head", "embed"),
      scale=1 / math.sqrt(2 * len(config.layers)),
    )  # fmt: skip
    self.qk_norm = config.qk_norm
    if config.qk_norm:
      self.query_norm = RMSNorm(size, config.norm_epsilon)
      self.key_norm = RMSNorm(size, config.norm_epsilon)

  def project(
    self, x_BTD: Float[Array, "B T D"], angles: Rotation | None, layout: Layout
  ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Queries, keys and values, normalised and turned to their positions (`angles=None`: no position, NoPE)."""
    dtype = x_BTD.dtype
    q_BTNH = jnp.einsum("BTD,DNH->BTNH", x_BTD, self.query[...].astype(dtype))
    k_BTKH = jnp.einsum("BTD,DKH->BTKH", x_BTD, self.key[...].astype(dtype))
    v_BTKH = jnp.einsum("BTD,DKH->BTKH", x_BTD, self.value[...].astype(dtype))
    if self.qk_norm:
      q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
    if angles is not None:
      q_BTNH, k_BTKH = rotate(q_BTNH, angles), rotate(k_BTKH, angles)
    return q_BTNH, k_BTKH, v_BTKH

  def output(self, attended_BTNH: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
    """What the heads found, added up into the residual stream's width."""
    return jnp.einsum("BTNH,NHD->BTD", attended_BTNH, self.out[...].astype(attended_BTNH.dtype))
