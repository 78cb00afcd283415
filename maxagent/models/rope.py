"""Rotary position embedding. B batch, T length, N heads, H head size."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@functools.partial(jax.tree_util.register_dataclass, data_fields=["cos_BTP", "sin_BTP"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Rotation:
  """Cosine and sine of every position's angles, for the P = H/2 pairs of a head; computed once, used by every layer."""

  cos_BTP: Float[Array, "B T P"]
  sin_BTP: Float[Array, "B T P"]


def rotation(positions_BT: Int[Array, "B T"], head_size: int, theta: float) -> Rotation:
  """The float32 angles position * theta^(-2p/H). Source: arXiv 2104.09864, equation 15."""
  pairs_P = jnp.arange(head_size // 2, dtype=jnp.float32)
  frequency_P = theta ** (-2.0 * pairs_P / head_size)
  angle_BTP = positions_BT[..., None].astype(jnp.float32) * frequency_P[None, None, :]
  return Rotation(jnp.cos(angle_BTP), jnp.sin(angle_BTP))


def rotate(x_BTNH: Float[Array, "B T N H"], angles: Rotation) -> Float[Array, "B T N H"]:
  """Turns each pair (first half, second half) of a head by its position's angle; float32 arithmetic, `x`'s dtype out."""
  first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  cos, sin = angles.cos_BTP[:, :, None, :], angles.sin_BTP[:, :, None, :]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTNH.dtype)
