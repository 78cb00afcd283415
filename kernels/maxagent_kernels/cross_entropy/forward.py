"""The forward kernel: the log-sum-exp of each token's logits, and the logit of its target.

N tokens, D model, V vocabulary; T tokens and W words of a tile, E of D in a chunk.

A grid step owns T tokens, keeps their hidden states in VMEM and walks over the head once: tile by tile along the vocabulary,
in each down the model's width in chunks, which it copies from HBM one ahead. A tile's logits are summed in VMEM while those
of the tile before go through softmax, a few rows beside each chunk. Every lane keeps a running maximum and sum of its own [T,
LANES], so the loop has no work across lanes; the 128 of a token meet once, at the end.
Source: online log-sum-exp, arXiv 1805.02867; over a head's tiles, arXiv 2411.09009.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from maxagent_kernels.cross_entropy.plan import FLOOR, HIDDEN, LANES, LN2, LOG2E, Plan
from maxagent_kernels.cross_entropy.units import NN, WIDE, ChunkCopy, dot, down, each_chunk, groups, interleave, token_copies

ROWS = 8  # of a float32 register


def scratch(plan: Plan, dtype: Any, head_dtype: Any) -> list[Any]:
  """What a grid step holds, in the order of `_Refs`."""
  sums = pltpu.VMEM((plan.tokens, LANES), jnp.float32)
  return [
    pltpu.VMEM((plan.chunks, plan.tokens, plan.chunk), dtype),
    pltpu.VMEM((2, plan.chunk, plan.words), head_dtype),
    pltpu.VMEM((2, plan.tokens, plan.words), jnp.float32),
    pltpu.VMEM((plan.tokens, LANES), jnp.int32),
    sums, sums, sums,
    pltpu.SemaphoreType.DMA((plan.chunks,)),
    pltpu.SemaphoreType.DMA((2,)),
  ]  # fmt: skip


def forward(hidden_ND: jax.Array, head_DV: jax.Array, targets_N: jax.Array, *, plan: Plan) -> jax.Array:
  """float32 [2, N]: log-sum-exp and target logit (0 where the target is no column). N and D whole tiles, V whole lanes."""
  count, tokens = hidden_ND.shape[0], plan.tokens
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  return pl.pallas_call(
    functools.partial(_kernel, plan),
    grid=(count // tokens,),
    in_specs=[pl.BlockSpec((1, tokens), lambda i: (0, i)), anywhere, anywhere],
    out_specs=pl.BlockSpec((2, tokens), lambda i: (0, i)),
    out_shape=jax.ShapeDtypeStruct((2, count), jnp.float32),
    scratch_shapes=scratch(plan, hidden_ND.dtype, head_DV.dtype),
    compiler_params=plan.compiler_params("parallel"),
    interpret=plan.interpret,
    name="cross_entropy_forward",
  )(targets_N[None], hidden_ND, head_DV)


class _Refs(NamedTuple):
  """The kernel's arguments in order: inputs, outputs, scratch. Any: references, or views of a Pallas interpreter."""

  row: Any  # [1, T]: targets
  hidden_hbm: Any  # [N, D]
  head_hbm: Any  # [D, V]
  out: Any  # [2, T]
  hidden: Any  # [D / E, T, E]
  head: Any  # [2, E, W]: this chunk and the next one
  logits: Any  # [2, T, W]: of this tile and of the one before
  targets: Any  # [T, LANES]
  top: Any  # [T, LANES]: running maximum of a lane's logits, in bits
  total: Any  # [T, LANES]: running sum of exp2
  chosen: Any  # [T, LANES]: the target's logit, in the lane that saw it
  hidden_sems: Any  # [D / E]
  head_sems: Any  # [2]


def _kernel(plan: Plan, *arguments: Any) -> None:
  refs = _Refs(*arguments)
  hidden = token_copies(plan, pl.program_id(0), refs.hidden_hbm, refs.hidden, refs.hidden_sems)
  head = ChunkCopy(plan, refs.head_hbm, refs.head, refs.head_sems)
  head.start(jnp.int32(0))
  for copy in hidden:
    copy.start()
  # The first tile has none before it: hidden logits add nothing.
  refs.logits[0] = jnp.zeros_like(refs.logits[0])
  refs.logits[1] = jnp.full_like(refs.logits[1], HIDDEN)
  refs.top[...] = jnp.full_like(refs.top, FLOOR)
  refs.total[...] = jnp.zeros_like(refs.total)
  refs.chosen[...] = jnp.zeros_like(refs.chosen)
  refs.targets[...] = down(refs.row[...])
  for copy in hidden:
    copy.wait()

  def chunk(j: jax.Array, k: jax.Array) -> None:
    at = j * plan.chunks + k
    pl.when(at + 1 < plan.tiles * plan.chunks)(lambda: head.start(at + 1))
    head.wait(at)
    to, slot = jax.lax.rem(j, 2), jax.lax.rem(at, 2)

    def product(first: int, column: int) -> None:
      rows, columns = slice(first, first + plan.unit), slice(column, column + WIDE)
      words = refs.head[slot, :, columns].astype(refs.hidden.dtype)
      refs.logits[to, rows, columns] += dot(refs.hidden[k, rows], words, NN)

    units = [(row, column) for column in range(0, plan.words, WIDE) for row in range(0, plan.tokens, plan.unit)]

    def softmax(start: int, count: int) -> None:
      for row in range(start, start + count, ROWS):
        _softmax(refs, j - 1, k * plan.rows + row, plan.words, plan.words)

    interleave(plan, [functools.partial(product, *unit) for unit in units], softmax, step=ROWS)

  jax.lax.fori_loop(0, plan.tiles, lambda j, _: each_chunk(plan, functools.partial(chunk, j)), None)
  last = plan.tiles - 1

  def end(at: jax.Array, _: None) -> None:
    _softmax(refs, jnp.int32(last), at * ROWS, plan.columns(last), plan.words)

  jax.lax.fori_loop(0, plan.tokens // ROWS, end, None)
  top_LT = refs.top[...].T
  greatest_1T = top_LT.max(0, keepdims=True)
  total_1T = (refs.total[...].T * jnp.exp2(top_LT - greatest_1T)).sum(0, keepdims=True)
  refs.out[0:1] = (greatest_1T + jnp.log2(total_1T)) * LN2
  refs.out[1:2] = refs.chosen[...].T.sum(0, keepdims=True)


def _softmax(refs: _Refs, j: jax.Array, first: jax.Array, columns: int, words: int) -> None:
  """Adds the first `columns` logits of ROWS tokens in tile j to their statistics, and leaves zeros for tile j + 2."""
  rows = pl.ds(pl.multiple_of(first, ROWS), ROWS)
  slot, lane = jax.lax.rem(j + 2, 2), jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
  place, before = refs.targets[rows] - j * words, refs.top[rows]
  top, chosen, bits = before, refs.chosen[rows], []
  for group in groups(columns):
    logits = refs.logits[slot, rows, group]
    if columns < group.stop:  # padding of the vocabulary to whole lanes
      logits = jnp.where(lane < columns - group.start, logits, HIDDEN)
    chosen = jnp.where(place == lane + group.start, logits, chosen)
    bits.append(logits * LOG2E)
    top = jnp.maximum(top, bits[-1])
  total = refs.total[rows] * jnp.exp2(before - top)
  for one in bits:
    total = total + jnp.exp2(one - top)
  refs.top[rows], refs.total[rows], refs.chosen[rows] = top, total, chosen
  refs.logits[slot, rows] = jnp.zeros((ROWS, words), jnp.float32)
