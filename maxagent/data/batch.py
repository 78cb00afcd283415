"""What the data pipeline hands to the training step. B batch rows, T positions."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """Packed rows. Leaves are [B, T] arrays (NumPy on the host, jax.Array on the mesh).

  `targets[i]` is the token after `tokens[i]`; roles, statuses and flags describe `targets[i]`, sources the document. A
  document's first token is never a target: the place before it has role PAD. `segments` numbers the documents of a row from 1
  (0 is padding); `positions` count from the document's start, also where it continues in a later row (with flag CONTINUED).

  Example, two documents `a b` and `c` in a row of 4 (0 is the pad id):
      tokens    [a, b, c, 0]
      targets   [b, 0, 0, 0]
      roles     [WEB, PAD, PAD, PAD]
      segments  [1, 1, 2, 0]
      positions [0, 1, 0, 0]
  """

  tokens: Any  # int32
  targets: Any  # int32
  roles: Any  # uint8, traces.schema.Role
  statuses: Any  # uint8, traces.schema.Status
  sources: Any  # uint8, index into the config's sources sorted by name
  flags: Any  # uint8, traces.schema.Flag
  segments: Any  # int32
  positions: Any  # int32


FIELD_DTYPES: dict[str, type] = {
  "tokens": np.int32,
  "targets": np.int32,
  "roles": np.uint8,
  "statuses": np.uint8,
  "sources": np.uint8,
  "flags": np.uint8,
  "segments": np.int32,
  "positions": np.int32,
}
