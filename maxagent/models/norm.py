"""Root-mean-square normalisation. D model (or head) size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from maxagent.models.parameters import ones


def rms_norm(x: Float[Array, "*B D"], scale_D: Float[Array, " D"], epsilon: float) -> Float[Array, "*B D"]:
  """`x` over its root mean square, times `scale_D`; float32 arithmetic, `x`'s dtype out.

  Source: arXiv 1910.07467, equation 4.
  """
  wide = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
  return (wide * inverse * jnp.expand_dims(scale_D, range(x.ndim - 1))).astype(x.dtype)


class RMSNorm(nnx.Module):
  """RMS normalisation of the last axis with a learned scale."""

  def __init__(self, size: int, epsilon: float) -> None:
    self.epsilon = epsilon
    self.scale = ones(size, axes=("norm",))

  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """`x` normalised, in its own dtype."""
    return rms_norm(x, self.scale[...], self.epsilon)
