"""Who may look at whom. B batch, T query length, S key length."""

from __future__ import annotations

import dataclasses
import functools

import jax
from jaxtyping import Array, Bool, Int


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["q_segments", "kv_segments", "q_positions", "kv_positions"],
  meta_fields=["window"],
)
@dataclasses.dataclass(frozen=True)
class Mask:
  """A query sees a key of its own document, not later than itself, and nearer than `window` positions (None: any distance).

  Segment 0 is padding: it sees nothing and nobody sees it. Inside a segment positions increase with the index, which is what
  lets a backend skip blocks by index alone.
  """

  q_segments: Int[Array, "B T"]
  kv_segments: Int[Array, "B S"]
  q_positions: Int[Array, "B T"]
  kv_positions: Int[Array, "B S"]
  window: int | None = None

  @classmethod
  def within(cls, segments_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"], window: int | None = None) -> Mask:
    """The mask of a sequence that looks at itself, as in training."""
    return cls(segments_BT, segments_BT, positions_BT, positions_BT, window)

  def visible(self) -> Bool[Array, "B T S"]:
    """The mask, written out; a backend does this for one tile at a time."""
    q_segment, kv_segment = self.q_segments[:, :, None], self.kv_segments[:, None, :]
    distance = self.q_positions[:, :, None] - self.kv_positions[:, None, :]
    seen = (q_segment == kv_segment) & (q_segment != 0) & (distance >= 0)
    return seen if self.window is None else seen & (distance < self.window)
