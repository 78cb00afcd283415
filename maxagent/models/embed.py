"""Token ids to vectors, and the matrix that turns vectors back. V vocabulary, D model, B batch, T length."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from maxagent.config.schema import Model
from maxagent.models.parameters import matrix, normal
from maxagent.parallel.rules import Layout


class Embedding(nnx.Module):
  """The input table, and the output matrix when that is not the table itself.

  A tied table has two jobs: as output it wants a small deviation (`init_scale`), as input one near the layers' outputs. So a
  tied table is multiplied by sqrt(D) on the way in, as in Gemma; an untied one is not.
  """

  def __init__(self, config: Model, *, key: Array) -> None:
    table, head = jax.random.split(key)
    shape = (config.vocab_size, config.hidden_size)
    self.input_scale = math.sqrt(config.hidden_size) if config.tied_embeddings else 1.0
    self.table = normal(table, shape, deviation=config.init_scale, axes=("vocab", "embed"))
    if not config.tied_embeddings:
      self.head = matrix(head, shape[::-1], fan_in=config.hidden_size, axes=("embed", "vocab"))

  def __call__(self, tokens_BT: Int[Array, "B T"], dtype: jnp.dtype, layout: Layout) -> Float[Array, "B T D"]:
    """Vectors of the tokens, in `dtype`."""
    # The table's columns lie along fsdp, as the batch does: gathered whole once rather than reshuffled for every token.
    table_VD = layout.constrain(self.table[...], "vocab", None)
    x_BTD = table_VD.astype(dtype)[tokens_BT]
    return layout.constrain(x_BTD * jnp.asarray(self.input_scale, dtype), "batch", "length", None)

  def output_matrix(self) -> Float[Array, "D V"]:
    """The float32 matrix from hidden states to logits."""
    return self.head[...] if hasattr(self, "head") else self.table[...].T
