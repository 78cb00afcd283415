"""The projections around attention. B batch, T length, D model, N query heads, K key/value heads, H head size."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from maxagent.config.schema import Model
from maxagent.models.linear import linear
from maxagent.models.norm import RMSNorm
from maxagent.models.parameters import matrix
from maxagent.models.rope import Rotation, rotate
from maxagent.parallel.rules import Layout

# With `copy_init` a head's output matrix begins as its value matrix transposed, times this: what a head attends to is added to
# the stream as it was and, under a tied head, raises its own logit. Only where to attend is then left to learn. The quickstart
# does not learn to copy a tool's name without it. After the symmetric starts of arXiv 2305.09828, with the sign that copies.
COPY_SCALE = 0.5


class Attention(nnx.Module):
  """Queries, keys and values out of the residual stream, and attention's result back into it; who attends is the caller's."""

  def __init__(self, config: Model, *, key: Array) -> None:
    wide, size = config.hidden_size, config.head_size
    query, keys, values, out = jax.random.split(key, 4)
    self.query = matrix(query, (wide, config.heads, size), fan_in=wide, axes=("embed", "heads", "head"))
    self.key = matrix(keys, (wide, config.kv_heads, size), fan_in=wide, axes=("embed", "kv_heads", "head"))
    self.value = matrix(values, (wide, config.kv_heads, size), fan_in=wide, axes=("embed", "kv_heads", "head"))
    axes = ("heads", "head", "embed")
    if config.copy_init:
      value_KHD = jnp.moveaxis(self.value[...], 0, -1)
      self.out = nnx.Param(COPY_SCALE * jnp.repeat(value_KHD, config.heads // config.kv_heads, axis=0), axes=axes)
    else:
      scale = 1 / math.sqrt(2 * len(config.layers))
      self.out = matrix(out, (config.heads, size, wide), fan_in=config.heads * size, axes=axes, scale=scale)
    self.qk_norm = config.qk_norm
    if config.qk_norm:
      self.query_norm = RMSNorm(size, config.norm_epsilon)
      self.key_norm = RMSNorm(size, config.norm_epsilon)

  def project(
    self, x_BTD: Float[Array, "B T D"], angles: Rotation | None, layout: Layout
  ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Queries, keys and values, normalised and turned to their positions (`angles=None`: no position, NoPE)."""
    q_BTNH, k_BTKH, v_BTKH = (self._heads(x_BTD, weights[...], layout) for weights in (self.query, self.key, self.value))
    if self.qk_norm:
      q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
    if angles is not None:
      q_BTNH, k_BTKH = rotate(q_BTNH, angles), rotate(k_BTKH, angles)
    return q_BTNH, k_BTKH, v_BTKH

  def output(self, attended_BTNH: Float[Array, "B T N H"], layout: Layout) -> Float[Array, "B T D"]:
    """What the heads found, added up into the residual stream's width."""
    batch, length = attended_BTNH.shape[:2]
    weights_NHD = self.out[...]
    return linear(attended_BTNH.reshape(batch, length, -1), weights_NHD.reshape(-1, weights_NHD.shape[-1]), layout)

  def _heads(self, x_BTD: Array, weights_DNH: Array, layout: Layout) -> Float[Array, "B T N H"]:
    wide, heads, size = weights_DNH.shape
    return linear(x_BTD, weights_DNH.reshape(wide, heads * size), layout).reshape(*x_BTD.shape[:2], heads, size)
