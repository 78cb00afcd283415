"""The matrix product of a layer. B batch, T length, M = B * T tokens, I inputs, O outputs."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from maxagent.parallel.rules import Layout


def linear(x_BTI: Float[Array, "B T I"], matrix_IO: Float[Array, "I O"], layout: Layout) -> Float[Array, "B T O"]:
  """`x_BTI` times the matrix, in `x_BTI`'s dtype."""
  matrix_IO = matrix_IO.astype(x_BTI.dtype)
  if layout.parts("length") > 1:
    return jnp.einsum("BTI,IO->BTO", x_BTI, matrix_IO)  # B and T cannot become one axis where both are cut
  # One token axis: for a weight gradient that contracts two axes XLA for CPU transposes whole activations, which took a
  # third of a training step.
  x_MI = x_BTI.reshape(-1, x_BTI.shape[-1])
  return jnp.einsum("MI,IO->MO", x_MI, matrix_IO).reshape(*x_BTI.shape[:2], -1)
