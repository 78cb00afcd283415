"""A digest of all that the steps have read, in order: the same on any mesh, for any number of processes, across any restart.

It is computed inside the step, from the very arrays that are trained on. Every place of a batch (step, row, position) is
hashed with all that the batch says there, and the hashes are added modulo 2^32 in two lanes. A sum has no order, so it comes
out alike however rows lie on devices; a place is part of its hash, so rows that change places change it. One changed value
always changes both lanes, as every step of the hash has an inverse; several cancel by chance, about 2^-64. B batch, T length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

from maxagent.data.batch import Batch

_SALTS = (0x9E3779B9, 0x7F4A7C15)  # one per lane; any two different constants
_LANE = 1 << 32


def batch_digest(batch: Batch, step: Int[Array, ""]) -> UInt32[Array, "2"]:
  """What one step adds to the digest of the stream; `step` counts the batches before it."""
  shape = batch.tokens.shape
  rows_BT, columns_BT = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
  places_BT = rows_BT * shape[1] + columns_BT
  lanes = []
  for salt in _SALTS:
    hashes_BT = _mixed(places_BT ^ _mixed(step.astype(jnp.uint32) + jnp.uint32(salt)))
    for field in dataclasses.fields(Batch):
      hashes_BT = _mixed(hashes_BT ^ getattr(batch, field.name).astype(jnp.uint32))
    lanes.append(jnp.sum(hashes_BT, dtype=jnp.uint32))
  return jnp.stack(lanes)


def added(digest: int, lanes: Sequence[Any]) -> int:
  """A digest of 64 bits with what `batch_digest` gave for one more step."""
  low, high = (int(lane) for lane in lanes)
  return (digest + low) % _LANE | ((digest >> 32) + high) % _LANE << 32


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
  """The finalizer of MurmurHash3: a bijection after which every bit depends on every bit."""
  x = (x ^ x >> 16) * jnp.uint32(0x85EBCA6B)
  x = (x ^ x >> 13) * jnp.uint32(0xC2B2AE35)
  return x ^ x >> 16
