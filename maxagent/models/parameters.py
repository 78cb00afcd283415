"""How a layer declares a parameter: its shape, its first values and its logical axes, in one place."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

Axes = tuple[str | None, ...]


def normal(key: PRNGKeyArray | Array, shape: tuple[int, ...], *, deviation: float, axes: Axes) -> nnx.Param:
  """A float32 parameter drawn from a normal distribution of that standard deviation."""
  # `axes` rides as the variable's own metadata: Flax's sharding fields would apply a mesh at construction.
  return nnx.Param(deviation * jax.random.normal(key, shape, jnp.float32), axes=axes)


def matrix(key: PRNGKeyArray | Array, shape: tuple[int, ...], *, fan_in: int, axes: Axes, scale: float = 1.0) -> nnx.Param:
  """A float32 matrix whose outputs have `scale` times the deviation of its inputs."""
  return normal(key, shape, deviation=scale / math.sqrt(fan_in), axes=axes)


def ones(size: int, *, axes: Axes) -> nnx.Param:
  """A float32 vector of ones."""
  return nnx.Param(jnp.ones((size,), jnp.float32), axes=axes)
