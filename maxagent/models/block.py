"""One layer of the decoder: attention, then the gated MLP, each behind a norm and added to the residual stream.

B batch, T length, D model, N query heads, K key/value heads, H head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from maxagent.config.schema import Model
from maxagent.models.attention.layer import Attention
from maxagent.models.mlp import SwiGLU
from maxagent.models.norm import RMSNorm
from maxagent.models.rope import Rotation
from maxagent.parallel.rules import Layout

# (q, k, v) -> (attended, what the caller keeps). Training keeps nothing; decoding keeps the layer's cache.
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]


class Block(nnx.Module):
  """A layer of one kind: "local" (sliding window, RoPE) or "global" (everything before, RoPE only if asked for)."""

  def __init__(self, config: Model, kind: str, *, key: Array) -> None:
    attention, mlp = jax.random.split(key)
    self.rotates = kind == "local" or config.global_rope
    self.attention_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
    self.attention = Attention(config, key=attention)
    self.mlp_norm = RMSNorm(config.hidden_size, config.norm_epsilon)
    self.mlp = SwiGLU(config, key=mlp)

  def __call__(
    self, x_BTD: Float[Array, "B T D"], *, angles: Rotation, attend: Attend, layout: Layout
  ) -> tuple[Float[Array, "B T D"], Any]:
    """The residual stream after this layer, and whatever `attend` keeps."""
    q, k, v = self.attention.project(self.attention_norm(x_BTD), angles if self.rotates else None, layout)
    attended_BTNH, kept = attend(q, k, v)
    x_BTD = x_BTD + self.attention.output(attended_BTNH, layout)
    x_BTD = x_BTD + self.mlp(self.mlp_norm(x_BTD), layout)
    return layout.constrain(x_BTD, "batch", "length", None), kept
