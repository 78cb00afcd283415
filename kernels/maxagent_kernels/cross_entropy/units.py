"""What both kernels do: products, copies of chunks between HBM and VMEM, and the order in which units stand.

D model, V vocabulary; T tokens and W words of a tile, E of D in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from maxagent_kernels.cross_entropy.plan import LANES, SUBLANES, Plan, whole

NN, NT, TN = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))
WIDE = 256  # columns of one product: the width of the widest matrix unit (v6e)


def dot(a: jax.Array, b: jax.Array, dims: Any) -> jax.Array:
  """A product that accumulates in float32; float32 inputs are not rounded to bfloat16 on the way."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == "float32" else None
  return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def down(row_1T: jax.Array) -> jax.Array:
  """[T, LANES]: a number of each token, which lie along lanes, in every lane of the token's row."""
  return jnp.broadcast_to(row_1T, (LANES, row_1T.shape[1])).T


def groups(columns: int) -> list[slice]:
  """The lane groups of so many columns, in whole lanes."""
  return [slice(at, at + LANES) for at in range(0, columns, LANES)]


class ChunkCopy(NamedTuple):
  """Copies chunk `at`, counted down D in each tile and tile by tile along V, to or from its slot in VMEM.

  A chunk is [E, W]; the last tile's may be narrower, and then the rest of its slot keeps what it held.
  """

  plan: Plan
  hbm: Any  # [D, V], V in whole lanes
  slots: Any  # [S, E, W]
  sems: Any  # [S]
  back: bool = False  # from VMEM to HBM

  def start(self, at: jax.Array) -> None:
    """Begins the copy."""
    self._each(at, lambda copy: copy.start())

  def wait(self, at: jax.Array) -> None:
    """Waits until the copy is done."""
    self._each(at, lambda copy: copy.wait())

  def _each(self, at: jax.Array, act: Callable[[Any], None]) -> None:
    plan, slot = self.plan, jax.lax.rem(at, self.slots.shape[0])
    tile, chunk = jax.lax.div(at, plan.chunks), jax.lax.rem(at, plan.chunks)

    def go(columns: int) -> None:
      first_row, first_column = pl.multiple_of(chunk * plan.chunk, plan.chunk), pl.multiple_of(tile * plan.words, plan.words)
      there = self.hbm.at[pl.ds(first_row, plan.chunk), pl.ds(first_column, columns)]
      here = self.slots.at[slot, :, pl.ds(0, columns)]
      ends = (here, there) if self.back else (there, here)
      act(pltpu.make_async_copy(*ends, self.sems.at[slot]))

    last = whole(plan.columns(plan.tiles - 1))
    if last == plan.words:
      go(plan.words)
      return
    pl.when(tile < plan.tiles - 1)(lambda: go(plan.words))
    pl.when(tile == plan.tiles - 1)(lambda: go(last))


def token_copies(plan: Plan, i: jax.Array, hbm: Any, chunks: Any, sems: Any, *, back: bool = False) -> list[Any]:
  """The copies of grid step i's rows of hbm [N, D] to (or from) chunks [D / E, T, E]."""
  rows = pl.ds(pl.multiple_of(i * plan.tokens, plan.tokens), plan.tokens)
  ends = [(hbm.at[rows, k * plan.chunk : (k + 1) * plan.chunk], chunks.at[k]) for k in range(plan.chunks)]
  return [pltpu.make_async_copy(*(pair[::-1] if back else pair), sems.at[k]) for k, pair in enumerate(ends)]


def each_chunk(plan: Plan, act: Callable[[jax.Array], None]) -> None:
  """Runs `act` on every chunk of the model's width: one copy of its code."""
  jax.lax.fori_loop(0, plan.chunks, lambda k, _: act(k), None)


def interleave(
  plan: Plan, products: Sequence[Callable[[], None]], softmax: Callable[[int, int], None], *, step: int = SUBLANES
) -> None:
  """Runs the products with the chunk's softmax of (first row, rows) spread among them, in multiples of `step` rows.

  The compiler's scheduler fills the matrix units with products while the vector units work on softmax, but only if they stand
  near one another: static score of the forward pass on v6e 2,684 bundles a chunk of 1024 x 1024 x 512 with softmax behind one
  product, 2,355 so.
  """
  done = 0
  for number, product in enumerate(products):
    product()
    upto = plan.rows * (number + 1) // len(products) // step * step if number + 1 < len(products) else plan.rows
    if upto > done:
      softmax(done, upto - done)
    done = upto
