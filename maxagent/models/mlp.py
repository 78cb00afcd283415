"""The gated feed-forward layer. B batch, T length, D model, F hidden."""

from __future__ import annotations

import math

import jax
from flax import nnx
from jaxtyping import Array, Float

from maxagent.config.schema import Model
from maxagent.models.linear import linear
from maxagent.models.parameters import matrix
from maxagent.parallel.rules import Layout


class SwiGLU(nnx.Module):
  """down(silu(gate(x)) * up(x)), without biases. Source: arXiv 2002.05202, equation 6."""

  def __init__(self, config: Model, *, key: Array) -> None:
    wide, inner = config.hidden_size, config.mlp_size
    gate, up, down = jax.random.split(key, 3)
    self.gate = matrix(gate, (wide, inner), fan_in=wide, axes=("embed", "mlp"))
    self.up = matrix(up, (wide, inner), fan_in=wide, axes=("embed", "mlp"))
    # Two outputs per layer add to the residual stream; this keeps its size independent of depth at the start.
    scale = 1 / math.sqrt(2 * len(config.layers))
    self.down = matrix(down, (inner, wide), fan_in=inner, axes=("mlp", "embed"), scale=scale)

  def __call__(self, x_BTD: Float[Array, "B T D"], layout: Layout) -> Float[Array, "B T D"]:
    """The layer's output, in `x_BTD`'s dtype."""
    gate_BTF, up_BTF = linear(x_BTD, self.gate[...], layout), linear(x_BTD, self.up[...], layout)
    inner_BTF = layout.constrain(jax.nn.silu(gate_BTF) * up_BTF, "batch", "length", "mlp")
    return linear(inner_BTF, self.down[...], layout)
