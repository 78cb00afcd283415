"""Floating-point operations, counted from the config; a multiplication and its addition are two.

Per token of the forward pass, with D model, F hidden, N query heads, K key/value heads, H head size, V vocabulary:

    layer      2 (D (N + 2 K) H + N H D + 3 D F)
    attention  4 N H x the positions that a token sees, on average over a row that is one document
    head       2 D V

The backward pass takes twice that. Source: PaLM, arXiv 2204.02311, appendix B, whose MFU this is; there attention is counted
uncut, here only what the mask leaves. Rows of several documents need less attention than this.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax

from maxagent.config import Config
from maxagent.config.schema import Model
from maxagent.models import transformer
from maxagent.training.optimizer import muon_dimensions

_NEWTON_SCHULZ_TURNS = 5  # of optax.contrib.muon
# Products of a tile: 2 forward, 4 backward; a kernel's backward has a fifth, since it makes the scores again.
_KERNEL_BACKWARD = 2.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
  """Per token, forward; `optimizer` per step."""

  layers: float  # matrix products between embedding and head
  attention: float
  head: float
  recomputed: float  # done a second time for the backward pass: no part of the model's
  optimizer: float

  @property
  def model(self) -> float:
    """Per token, forward and backward: what MFU counts."""
    return 3 * (self.layers + self.attention + self.head)

  @property
  def hardware(self) -> float:
    """Per token, with what is computed again."""
    return self.model + self.recomputed

  @property
  def kernels(self) -> float:
    """Per token, of an attention kernel, forward and backward; its result is kept, so it runs once."""
    return self.attention * (1 + _KERNEL_BACKWARD)


def count(config: Config, length: int | None = None) -> Flops:
  """The operations of a config on rows of `length` tokens (None: those of the first phase)."""
  model, length = config.model, length or config.shapes[0][2]
  heads, kv_heads = model.heads * model.head_size, model.kv_heads * model.head_size
  layer = 2.0 * (model.hidden_size * (2 * heads + 2 * kv_heads) + 3 * model.hidden_size * model.mlp_size)
  kinds = model.layers + model.layers[-1:] * model.mtp_depth
  joined = 4.0 * model.hidden_size**2 * model.mtp_depth  # of multi-token prediction: two inputs side by side
  layers = layer * len(kinds) + joined
  attention = sum(4.0 * heads * visible(length, transformer.window_of(model, kind)) for kind in kinds)
  head = 2.0 * model.hidden_size * model.vocab_size * (1 + model.mtp_depth)
  again = head + attention * (_KERNEL_BACKWARD - 2) + (layers if model.remat == "block" else 0.0)
  return Flops(layers=layers, attention=attention, head=head, recomputed=again, optimizer=_optimizer(config))


def visible(length: int, window: int | None) -> float:
  """Positions that a token sees, itself included, averaged over a row that is one document.

  4, None -> (1 + 2 + 3 + 4) / 4 = 2.5
  4, 2 -> (1 + 2 + 2 + 2) / 4 = 1.75
  """
  seen = min(window or length, length)
  return (seen * (seen + 1) / 2 + (length - seen) * seen) / length


def parameters(model: Model) -> int:
  """How many numbers training moves."""
  return sum(math.prod(shape) for shape, _ in _arrays(dataclasses.replace(model, remat="none")))


@functools.cache
def _arrays(model: Model) -> list[tuple[tuple[int, ...], tuple[str | None, ...]]]:
  """Shape and logical axes of every parameter; a search asks for them a thousand times."""
  axes = jax.tree.leaves(transformer.logical_axes(model), is_leaf=lambda node: isinstance(node, tuple))
  leaves = jax.tree.leaves(transformer.abstract(model))
  return [(leaf.shape, names) for leaf, names in zip(leaves, axes, strict=True)]


def _optimizer(config: Config) -> float:
  """Muon's Newton-Schulz turns: of an m x n matrix, m the smaller side, 4 m^2 n + 2 m^3 each. AdamW multiplies no matrices."""
  if config.optimizer.name != "muon":
    return 0.0
  flops = 0.0
  for shape, names in _arrays(dataclasses.replace(config.model, remat="none")):
    if dimensions := muon_dimensions(names):
      rows, columns = (math.prod(shape[d] for d in side) for side in (dimensions.reduction_axis, dimensions.output_axis))
      m, n = sorted((rows, columns))
      flops += math.prod(shape) / (rows * columns) * _NEWTON_SCHULZ_TURNS * (4.0 * m * m * n + 2.0 * m**3)
  return flops
