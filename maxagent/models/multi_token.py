"""One depth of multi-token prediction: a layer that looks one token further than the model before it.

B batch, T length, D model, E = 2 D, the width of both inputs side by side.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from maxagent.config.schema import Model
from maxagent.models.block import Attend, Block
from maxagent.models.linear import linear
from maxagent.models.norm import RMSNorm
from maxagent.models.parameters import matrix
from maxagent.models.rope import Rotation
from maxagent.parallel.rules import Layout


class Depth(nnx.Module):
  """norm(layer([norm(state before), norm(embedding of the token ahead)] times a matrix)); the head is the model's own.

  The state that the head reads is the one that the next depth begins from; the norm at its entrance undoes its size anyway.
  Source: DeepSeek-V3, arXiv 2412.19437, section 2.2.
  """

  def __init__(self, config: Model, kind: str, *, key: Array) -> None:
    projection, layer = jax.random.split(key)
    wide = config.hidden_size
    self.state_norm = RMSNorm(wide, config.norm_epsilon)
    self.token_norm = RMSNorm(wide, config.norm_epsilon)
    self.projection = matrix(projection, (2 * wide, wide), fan_in=2 * wide, axes=("embed", None))
    self.layer = Block(config, kind, key=layer)
    self.final_norm = RMSNorm(wide, config.norm_epsilon)

  def __call__(
    self,
    state_BTD: Float[Array, "B T D"],
    token_BTD: Float[Array, "B T D"],
    *,
    angles: Rotation,
    attend: Attend,
    layout: Layout,
  ) -> Float[Array, "B T D"]:
    """The states of this depth from those of the one before and the embeddings of the tokens that it adds."""
    both_BTE = jnp.concatenate([self.state_norm(state_BTD), self.token_norm(token_BTD)], axis=-1)
    x_BTD = layout.constrain(linear(both_BTE, self.projection[...], layout), "batch", "length", None)
    x_BTD, _ = self.layer(x_BTD, angles=angles, attend=attend, layout=layout)
    return self.final_norm(x_BTD)


def ahead(x_BT: Shaped[Array, "B T"], places: int) -> Shaped[Array, "B T"]:
  """What stands `places` further on in each row, and 0 past its end.

  [[5, 6, 7]], 1 -> [[6, 7, 0]]
  """
  return jnp.pad(x_BT[:, places:], ((0, 0), (0, min(places, x_BT.shape[1]))))
