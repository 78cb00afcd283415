"""How a masked score matrix is cut into tiles, and which of them matter.

B batch, T query length, S key length, I query tiles of Q queries, J key tiles of L keys.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from maxagent.models.masks import Mask


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["q_segments", "kv_segments", "q_positions", "kv_positions", "full", "first", "stop"],
  meta_fields=["window"],
)
@dataclasses.dataclass(frozen=True)
class Tiles:
  """The mask of some rows, cut: ids per tile, and what can be said of a tile without looking into it.

  The leading row axis is dropped where one row is worked on.
  """

  # Any: jax also builds this tree of things that are no arrays, such as the absent gradients of ids.
  q_segments: Any  # int [..., I, Q]
  kv_segments: Any  # int [..., J, L]
  q_positions: Any  # int [..., I, Q]
  kv_positions: Any  # int [..., J, L]
  full: Any  # bool [..., I, J]: every pair of the tile is visible, so no mask is needed
  first: Any  # int [..., I]: the key tiles of a query tile run from `first` ...
  stop: Any  # int [..., I]: ... to before `stop`; the others hold no visible pair
  window: int | None

  def visible(self, i: Int[Array, ""], j: Int[Array, ""]) -> Bool[Array, "Q L"]:
    """The mask of one tile of one row."""
    q_ids, kv_ids = (self.q_segments[i], self.q_positions[i]), (self.kv_segments[j], self.kv_positions[j])
    q_segments, q_positions, kv_segments, kv_positions = (ids[None] for ids in (*q_ids, *kv_ids))
    return Mask(q_segments, kv_segments, q_positions, kv_positions, self.window).visible()[0]


def tiles_of(mask: Mask, *, q_start: int | Int[Array, ""], q_block: int, kv_block: int) -> Tiles:
  """Cuts a mask whose lengths are multiples of the blocks; query 0 is number `q_start` of the keys' sequence."""
  q_segments, q_positions = _cut(mask.q_segments, q_block), _cut(mask.q_positions, q_block)
  kv_segments, kv_positions = _cut(mask.kv_segments, kv_block), _cut(mask.kv_positions, kv_block)
  # [B, I, 1] against [B, 1, J]: least and greatest id of every tile.
  q_low, q_high = q_segments.min(-1)[:, :, None], q_segments.max(-1)[:, :, None]
  kv_low, kv_high = kv_segments.min(-1)[:, None, :], kv_segments.max(-1)[:, None, :]
  nearest = q_positions.min(-1)[:, :, None] - kv_positions.max(-1)[:, None, :]
  farthest = q_positions.max(-1)[:, :, None] - kv_positions.min(-1)[:, None, :]
  full = (q_low == q_high) & (kv_low == kv_high) & (q_low == kv_low) & (q_low > 0) & (nearest >= 0)
  live = (q_low <= kv_high) & (kv_low <= q_high) & (q_high > 0) & (kv_high > 0)
  live &= _reachable(live.shape[1:], q_start, (q_block, kv_block), mask.window)[None]
  if mask.window is not None:
    full &= farthest < mask.window
  first = jnp.argmax(live, axis=-1)
  stop = jnp.where(live.any(-1), live.shape[-1] - jnp.argmax(live[..., ::-1], axis=-1), first)
  return Tiles(q_segments, kv_segments, q_positions, kv_positions, full, first, stop, mask.window)


def _cut(ids_BT: Int[Array, "B T"], block: int) -> Int[Array, "B I Q"]:
  return ids_BT.reshape(ids_BT.shape[0], -1, block)


def _reachable(
  shape: tuple[int, ...], q_start: int | Int[Array, ""], blocks: tuple[int, int], window: int | None
) -> Bool[Array, "I J"]:
  """Tiles within the causal and window range by index alone, which is exact: positions grow at least as fast as indices."""
  first_q_I1 = q_start + blocks[0] * jnp.arange(shape[0])[:, None]
  first_kv_1J = blocks[1] * jnp.arange(shape[1])[None, :]
  inside_IJ = first_kv_1J <= first_q_I1 + blocks[0] - 1
  return inside_IJ if window is None else inside_IJ & (first_q_I1 - (first_kv_1J + blocks[1] - 1) < window)
