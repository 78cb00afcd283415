"""The backward kernel: the gradients of hidden states and head in one walk over the head, from logits computed again.

N tokens, D model, V vocabulary; T tokens and W words of a tile, E of D in a chunk.

A grid step owns T tokens and keeps their hidden states and the float32 sum of their gradients in VMEM. For each tile of the
head it first sums the logits chunk by chunk; then, chunk by chunk again, it multiplies out the gradients of the tile before,
while this tile's logits become gradients themselves, a few rows beside each chunk. The head's gradient lies in HBM in
float32: a chunk's is read one ahead, added to, and written back during the next. Token tiles run one after another and wait
for their own writes, so the order of every sum is fixed. Three products a tile, where two kernels would take four. A tile of
tokens without a cotangent does nothing but write zeros.
Source: arXiv 2411.09009, section 4, with one walk for both gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from maxagent_kernels.cross_entropy.plan import HIDDEN, LANES, LOG2E, SUBLANES, Plan
from maxagent_kernels.cross_entropy.units import (
  NN,
  NT,
  TN,
  WIDE,
  ChunkCopy,
  dot,
  down,
  each_chunk,
  groups,
  interleave,
  token_copies,
)

# The head's gradient of chunk n is read during n - 1, added to during n and written during n + 1.
SLOTS = 3


def scratch(plan: Plan, dtype: Any, head_dtype: Any) -> list[Any]:
  """What a grid step holds, in the order of `_Refs`."""
  statistic, slots = pltpu.VMEM((plan.tokens, LANES), jnp.float32), pltpu.SemaphoreType.DMA((SLOTS,))
  return [
    pltpu.VMEM((plan.chunks, plan.tokens, plan.chunk), dtype),
    pltpu.VMEM((plan.chunks, plan.tokens, plan.chunk), jnp.float32),
    pltpu.VMEM((2, plan.chunk, plan.words), head_dtype),
    pltpu.VMEM((2, plan.chunks, plan.chunk, plan.words), dtype),
    pltpu.VMEM((SLOTS, plan.chunk, plan.words), jnp.float32),
    pltpu.VMEM((plan.tokens, plan.words), jnp.float32),
    pltpu.VMEM((2, plan.tokens, plan.words), dtype),
    pltpu.VMEM((plan.tokens, LANES), jnp.int32),
    statistic, statistic, statistic,
    pltpu.SemaphoreType.DMA((plan.chunks,)),
    pltpu.SemaphoreType.DMA((2,)),
    slots, slots,
  ]  # fmt: skip


def backward(
  hidden_ND: jax.Array, head_DV: jax.Array, targets_N: jax.Array, statistics_3N: jax.Array, *, plan: Plan
) -> tuple[jax.Array, jax.Array]:
  """Gradients of hidden states [N, D] in their dtype and of the head [D, V] in float32. N and D whole tiles, V whole lanes.

  `statistics`, float32: log-sum-exp in nats, its cotangent, and that of the target's logit.
  """
  count, tokens = hidden_ND.shape[0], plan.tokens
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  live_I11 = (statistics_3N[1:] != 0).any(0).reshape(-1, 1, tokens).any(2, keepdims=True).astype(jnp.int32)
  zeros_DV = jnp.zeros(head_DV.shape, jnp.float32)
  return pl.pallas_call(
    functools.partial(_kernel, plan),
    grid=(count // tokens,),
    in_specs=[
      pl.BlockSpec((1, 1, 1), lambda i: (i, 0, 0), memory_space=pltpu.SMEM),
      pl.BlockSpec((1, tokens), lambda i: (0, i)),
      pl.BlockSpec((3, tokens), lambda i: (0, i)),
      anywhere, anywhere, anywhere,
    ],
    out_specs=[anywhere, anywhere],
    out_shape=[
      jax.ShapeDtypeStruct(hidden_ND.shape, hidden_ND.dtype),
      jax.ShapeDtypeStruct(head_DV.shape, jnp.float32),
    ],
    input_output_aliases={5: 1},
    scratch_shapes=scratch(plan, hidden_ND.dtype, head_DV.dtype),
    compiler_params=plan.compiler_params("arbitrary"),
    interpret=plan.interpret,
    name="cross_entropy_backward",
  )(live_I11, targets_N[None], statistics_3N, hidden_ND, head_DV, zeros_DV)  # fmt: skip


class _Refs(NamedTuple):
  """The kernel's arguments in order: inputs, outputs, scratch. Any: references, or views of a Pallas interpreter."""

  live: Any  # SMEM [1, 1, 1]: whether a token of this step has a cotangent
  row: Any  # [1, T]: targets
  statistics: Any  # [3, T]
  hidden_hbm: Any  # [N, D]
  head_hbm: Any  # [D, V]
  zeros: Any  # the same memory as d_head_hbm
  d_hidden_hbm: Any  # [N, D]
  d_head_hbm: Any  # [D, V]
  hidden: Any  # [D / E, T, E]; in the end their gradients
  d_hidden: Any  # [D / E, T, E]: running sums
  head: Any  # [2, E, W]: this chunk and the next one
  kept: Any  # [2, D / E, E, W]: the head of this tile and of the one before, in the products' dtype
  d_head: Any  # [SLOTS, E, W]
  logits: Any  # [T, W]
  d_logits: Any  # [2, T, W]: of this tile and of the one before
  targets: Any  # [T, LANES]
  log_z: Any  # [T, LANES]: in bits
  d_log_z: Any  # [T, LANES]
  d_chosen: Any  # [T, LANES]
  hidden_sems: Any  # [D / E]
  head_sems: Any  # [2]
  read_sems: Any  # [SLOTS]
  write_sems: Any


def _kernel(plan: Plan, *arguments: Any) -> None:
  refs = _Refs(*arguments)
  i, live = pl.program_id(0), refs.live[0, 0, 0] != 0
  pl.when(live)(lambda: _walk(plan, i, refs))

  @pl.when(jnp.logical_not(live))
  def _nothing() -> None:
    refs.hidden[...] = jnp.zeros_like(refs.hidden)

  writes = token_copies(plan, i, refs.d_hidden_hbm, refs.hidden, refs.hidden_sems, back=True)
  for copy in writes:
    copy.start()
  for copy in writes:
    copy.wait()


def _walk(plan: Plan, i: jax.Array, refs: _Refs) -> None:
  """Leaves the gradients of this step's hidden states in `refs.hidden`, and adds to the head's."""
  hidden = token_copies(plan, i, refs.hidden_hbm, refs.hidden, refs.hidden_sems)
  head = ChunkCopy(plan, refs.head_hbm, refs.head, refs.head_sems)
  read = ChunkCopy(plan, refs.d_head_hbm, refs.d_head, refs.read_sems)
  write = ChunkCopy(plan, refs.d_head_hbm, refs.d_head, refs.write_sems, back=True)
  total = plan.tiles * plan.chunks
  # Columns that a narrow last tile leaves as they were meet gradients of zero, and must be numbers for that.
  refs.head[...] = jnp.zeros_like(refs.head)
  head.start(jnp.int32(0))
  read.start(jnp.int32(0))
  for copy in hidden:
    copy.start()
  refs.logits[...] = jnp.zeros_like(refs.logits)
  refs.targets[...] = down(refs.row[...])
  refs.log_z[...] = down(refs.statistics[0:1]) * LOG2E
  refs.d_log_z[...] = down(refs.statistics[1:2])
  refs.d_chosen[...] = down(refs.statistics[2:3])
  for copy in hidden:
    copy.wait()

  def clear(k: jax.Array) -> None:
    refs.d_hidden[k] = jnp.zeros(refs.d_hidden.shape[1:], jnp.float32)

  each_chunk(plan, clear)

  def logits(j: jax.Array, k: jax.Array) -> None:
    at = j * plan.chunks + k
    pl.when(at + 1 < total)(lambda: head.start(at + 1))
    head.wait(at)
    words_EW = refs.head[jax.lax.rem(at, 2)].astype(refs.kept.dtype)
    refs.kept[jax.lax.rem(j, 2), k] = words_EW
    for column in range(0, plan.words, WIDE):
      columns = slice(column, column + WIDE)
      refs.logits[:, columns] += dot(refs.hidden[k], words_EW[:, columns], NN)

  def softmax(j: jax.Array, k: jax.Array, start: int, count: int) -> None:
    _softmax(plan, refs, j, pl.ds(pl.multiple_of(k * plan.rows + start, SUBLANES), count))

  def gradients(j: jax.Array, k: jax.Array) -> None:
    at = j * plan.chunks + k

    @pl.when(at + 1 < total)
    def _next() -> None:
      # The slot that the next chunk is read into was written from in the last but one.
      pl.when(at + 1 >= SLOTS)(lambda: write.wait(at + 1 - SLOTS))
      read.start(at + 1)

    read.wait(at)
    tile, slot = jax.lax.rem(j, 2), jax.lax.rem(at, SLOTS)

    def head_product() -> None:
      refs.d_head[slot] += dot(refs.hidden[k], refs.d_logits[tile], TN)

    def hidden_product(first: int) -> None:
      rows = slice(first, first + plan.unit)
      refs.d_hidden[k, rows] += dot(refs.d_logits[tile, rows], refs.kept[tile, k], NT)

    products: list[Callable[[], None]] = [head_product]
    products += [functools.partial(hidden_product, first) for first in range(0, plan.tokens, plan.unit)]
    interleave(plan, products, functools.partial(softmax, j + 1, k))
    write.start(at)

  each_chunk(plan, functools.partial(logits, jnp.int32(0)))
  each_chunk(plan, lambda k: softmax(jnp.int32(0), k, 0, plan.rows))

  def tile(j: jax.Array, _: None) -> None:
    # After the last tile there is one more turn, whose softmax is of no tile and is not read.
    pl.when(j < plan.tiles)(lambda: each_chunk(plan, functools.partial(logits, j)))
    each_chunk(plan, functools.partial(gradients, j - 1))

  jax.lax.fori_loop(1, plan.tiles + 1, tile, None)
  for back in range(min(SLOTS, total)):
    write.wait(jnp.int32(total - 1 - back))

  def cast(k: jax.Array) -> None:
    refs.hidden[k] = refs.d_hidden[k].astype(refs.hidden.dtype)

  each_chunk(plan, cast)


def _softmax(plan: Plan, refs: _Refs, j: jax.Array, rows: Any) -> None:
  """Turns rows of tile j's logits into their gradients, and leaves zeros for the next tile."""
  slot, lane = jax.lax.rem(j, 2), jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
  place, limit = refs.targets[rows] - j * plan.words, plan.vocabulary - j * plan.words
  log_z, d_log_z, d_chosen = refs.log_z[rows], refs.d_log_z[rows], refs.d_chosen[rows]
  for group in groups(plan.words):
    bits = jnp.where(lane < limit - group.start, refs.logits[rows, group] * LOG2E - log_z, HIDDEN)
    d_logits = jnp.exp2(bits) * d_log_z + jnp.where(place == lane + group.start, d_chosen, 0)
    refs.d_logits[slot, rows, group] = d_logits.astype(refs.d_logits.dtype)
  refs.logits[rows] = jnp.zeros((log_z.shape[0], plan.words), jnp.float32)
