"""Digests of arrays that come out the same however the array is cut over devices and hosts.

An array is read as unsigned words (of 32 bits, or of its elements' 16 or 8) in a table of R rows and C columns; only its global
shape decides which axes make the columns. Every global row and every global column has a fixed odd 64-bit key, and

    digest = sum over words of word * row_key * column_key   (mod 2^64)

The sum has no order, so each process adds the words it holds, every replica once, and the parts are added up when they are
read; shard edges may fall anywhere. One changed word always changes the digest: odd keys have an inverse, and words differ by
less than 2^32. Several changes cancel by chance only, about 2^-63, or 2^-32 at worst (if nothing but sign bits changed). A hash
over blocks (xxh3) is four times as fast but cannot be put together from shards whose edges cut a block. Measured on one core:
about 4 GB/s, 8 to 9% of the processor time of the whole save (tests/checkpoint: test_digests_cost_less_than_a_tenth_of_a_save).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import xxhash

_ROW_SALT = 0x6A09E667F3BCC908  # any two different constants: rows and columns must not share keys
_COLUMN_SALT = 0xBB67AE8584CAA73B
_MIN_COLUMNS = 1024  # words of a row are summed in one go; shorter rows cost more each
_CACHED_KEYS = 1 << 16  # longer key vectors (0.5 MiB) are made anew, lest they fill memory

Index = tuple[slice, ...]
Piece = tuple[Index, np.ndarray]  # where it lies in the global array, and its values


def json_digest(value: Any) -> str:
  """Hex xxh3-128 of a JSON value in canonical form, so that white space and key order do not count."""
  return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def start(arrays: Mapping[str, jax.Array]) -> Callable[[], dict[str, int]]:
  """Takes what this process holds of each array; the function it returns gives their part of the digests, on any thread.

  When this returns, the arrays may be donated. On an accelerator the values were copied to the host (Orbax uses the same
  copies) and are summed by the returned function. On a CPU device NumPy would see the device's own memory, which keeps XLA
  from reusing it, and summing is cheaper than copying: there the work is done at once.
  """
  held = {
    name: [(shard.index, shard.data) for shard in array.addressable_shards if shard.replica_id == 0]
    for name, array in arrays.items()
  }
  shapes = {name: array.shape for name, array in arrays.items()}
  if all(_on_cpu(data) for pieces in held.values() for _, data in pieces):
    sums = {name: part_of_sum(shapes[name], ((index, np.asarray(data)) for index, data in held[name])) for name in held}
    return lambda: sums
  for pieces in held.values():
    for _, data in pieces:
      data.copy_to_host_async()
  copies = {name: [(index, np.asarray(data)) for index, data in pieces] for name, pieces in held.items()}
  return lambda: {name: part_of_sum(shapes[name], pieces) for name, pieces in copies.items()}


def _on_cpu(data: jax.Array) -> bool:
  return all(device.platform == "cpu" for device in data.devices())


def part_of_sum(shape: tuple[int, ...], pieces: Iterable[Piece]) -> int:
  """What these pieces of a global array of `shape` add to its digest."""
  total = 0
  for index, values in pieces:
    total += _piece_sum(shape, index, values)
  return total % 2**64


def _piece_sum(shape: tuple[int, ...], index: Index, values: np.ndarray) -> int:
  if values.size == 0:
    return 0
  axis = _first_column_axis(shape)
  word = np.dtype(next(kind for kind in (np.uint32, np.uint16, np.uint8) if values.itemsize % np.dtype(kind).itemsize == 0))
  words_each = values.itemsize // word.itemsize
  spans = tuple(span.indices(length)[:2] for span, length in zip(index, shape, strict=True))
  row_keys = _keys(shape[:axis], spans[:axis], 1, _ROW_SALT)
  column_keys = _keys(shape[axis:], spans[axis:], words_each, _COLUMN_SALT)
  words = np.ascontiguousarray(values).reshape(len(row_keys), -1).view(word)
  row_sums = np.einsum("rc,c->r", words, column_keys, dtype=np.uint64)
  return int((row_sums * row_keys).sum(dtype=np.uint64))


def _first_column_axis(shape: tuple[int, ...]) -> int:
  """The last axes that together have at least _MIN_COLUMNS elements are columns."""
  for axis in range(len(shape) - 1, -1, -1):
    if math.prod(shape[axis:]) >= _MIN_COLUMNS:
      return axis
  return 0


def _keys(lengths: tuple[int, ...], spans: tuple[tuple[int, int], ...], words_each: int, salt: int) -> np.ndarray:
  count = math.prod(stop - begin for begin, stop in spans) * words_each
  return (_cached_keys if count <= _CACHED_KEYS else _make_keys)(lengths, spans, words_each, salt)


def _make_keys(lengths: tuple[int, ...], spans: tuple[tuple[int, int], ...], words_each: int, salt: int) -> np.ndarray:
  """Odd keys of the words inside `spans` of a table with axes `lengths`, by their place in the whole table (splitmix64)."""
  place: np.ndarray = np.zeros((), np.uint64)
  for length, (begin, stop) in zip((*lengths, words_each), (*spans, (0, words_each)), strict=True):
    place = place[..., None] * np.uint64(length) + np.arange(begin, stop, dtype=np.uint64)
  mixed = (place.reshape(-1) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
  mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)


_cached_keys = functools.lru_cache(maxsize=512)(_make_keys)
