"""What both kernels are compiled for: sizes that are known before any array is.

N tokens, D model, V vocabulary; T tokens and W words of a tile, E of D in a chunk.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.pallas import tpu as pltpu

LANES = 128
SUBLANES = 16  # of a bfloat16 register
# A hidden logit is HIDDEN and a running maximum never falls below FLOOR, so exp2(HIDDEN - maximum) is exactly 0.
HIDDEN, FLOOR = -1e30, -5e29
LOG2E, LN2 = math.log2(math.e), math.log(2)
# Of VMEM's 128 MiB (v5e, v6e) or 64 MiB (v5p), and how much of it a plan may fill: the rest is the compiler's.
VMEM_LIMIT_BYTES, SCRATCH_BYTES = 60 * 2**20, 54 * 2**20


@dataclasses.dataclass(frozen=True)
class Blocks:
  """How the logits are cut; a plan halves `tokens` where VMEM is too small for the model's width."""

  tokens: int  # of a tile
  words: int  # of a tile
  chunk: int  # of the model's width, at least: what one trip through the matrix units takes
  unit: int  # tokens of one product in a chunk; softmax stands between products in program order

  def __post_init__(self) -> None:
    if any(size % LANES or size < LANES for size in dataclasses.astuple(self)):
      raise ValueError(f"cross-entropy blocks are {self}; each must be a multiple of {LANES}, and at least that.")


# Chosen by the static score, `python benchmarks/linear_cross_entropy.py --choose` (jax 0.10.2, libtpu 0.0.52): the least mean,
# over v5e, v5p and v6e, of the score over the best score found there. docs/kernels.md has the list; forward is the second of
# it, 0.1% behind, whose chunks take half the VMEM.
FORWARD = Blocks(tokens=1024, words=2048, chunk=512, unit=512)
BACKWARD = Blocks(tokens=1024, words=512, chunk=1024, unit=512)


@dataclasses.dataclass(frozen=True)
class Plan:
  """One call: the sizes that its blocks come to, and where it runs."""

  tokens: int  # of a tile
  words: int  # of a tile
  chunk: int  # of the model's width
  unit: int
  model: int  # padded to whole lanes
  vocabulary: int  # as it is
  interpret: Any  # bool or pltpu.InterpretParams

  @property
  def chunks(self) -> int:
    """Chunks of the model's width: a power of two, so that the tokens of a tile divide among them."""
    return self.model // self.chunk

  @property
  def tiles(self) -> int:
    """Tiles of the vocabulary; the last one may hold fewer columns."""
    return -(-self.vocabulary // self.words)

  @property
  def rows(self) -> int:
    """Tokens of a tile whose softmax stands beside one chunk's products."""
    return self.tokens // self.chunks

  def columns(self, tile: int) -> int:
    """Words of a tile, without padding."""
    return min(self.words, self.vocabulary - tile * self.words)

  def compiler_params(self, semantics: str) -> pltpu.CompilerParams:
    """Whether token tiles are independent, and the memory allowed."""
    return pltpu.CompilerParams(dimension_semantics=(semantics,), vmem_limit_bytes=VMEM_LIMIT_BYTES)


Scratch = Callable[[Plan, Any, Any], list[Any]]  # of a plan and the dtypes of hidden states and head


def make_plan(hidden_ND: jax.Array, head_DV: jax.Array, blocks: Blocks, scratch: Scratch, interpret: Any) -> Plan:
  """The blocks, no larger than the arrays, with as many tokens as let `scratch` fit into VMEM."""
  count, model = hidden_ND.shape[0], whole(hidden_ND.shape[1])
  chunk = model
  while chunk % (2 * LANES) == 0 and chunk // 2 >= blocks.chunk:
    chunk //= 2
  step = max(LANES, SUBLANES * (model // chunk))
  words, tokens = min(blocks.words, whole(head_DV.shape[1])), min(whole(blocks.tokens, step), whole(count, step))
  while True:
    plan = Plan(tokens, words, chunk, blocks.unit, model, head_DV.shape[1], interpret)
    held = scratch(plan, hidden_ND.dtype, head_DV.dtype)
    if sum(math.prod(x.shape) * x.dtype.itemsize for x in held if x.memory_space == pltpu.VMEM) <= SCRATCH_BYTES:
      return plan
    if tokens == step:
      raise ValueError(f"a model {model} wide in {hidden_ND.dtype} does not fit into VMEM with {blocks}: choose fewer words.")
    tokens = whole(tokens // 2, step)


def whole(size: int, step: int = LANES) -> int:
  """`size` rounded up to a multiple of `step`."""
  return -(-size // step) * step
