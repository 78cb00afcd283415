"""Whole documents into rows: which documents of a window share a row."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

from maxagent.errors import DataError


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
  """Tokens [start, stop) of the document at a place in its window."""

  place: int
  start: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.start


Bin = tuple[Chunk, ...]


def pack_window(lengths: Sequence[int], capacity: int) -> list[Bin]:
  """Rows of at most `capacity` tokens by best-fit decreasing; every document once, whole where it fits into a row.

  A document longer than a row is cut, and its pieces take consecutive rows. Rows come in the order of the first document in
  them, which is random, as the order of documents is.

  Example, capacity 10:
      lengths [6, 23, 8, 2] gives [(1: 0-10), (1: 10-20), (1: 20-23, 0: 0-6), (2: 0-8, 3: 0-2)]
  """
  exact = [[place] for place, n in enumerate(lengths) if n > capacity and n % capacity == 0]
  bins: list[Bin] = []
  for row in sorted(_best_fit(lengths, capacity) + exact, key=min):
    # A long document's tail leads its row, whatever joined it.
    lead, *others = sorted(row, key=lambda place: (lengths[place] <= capacity, place))
    *full, tail = cut(lead, lengths[lead], capacity)
    bins += [(chunk,) for chunk in full]
    bins.append((tail, *(Chunk(place, 0, lengths[place]) for place in others)))
  return bins


def cut(place: int, length: int, capacity: int) -> list[Chunk]:
  """A document in pieces of at most `capacity` tokens, all full but the last."""
  return [Chunk(place, start, min(start + capacity, length)) for start in range(0, length, capacity)]


def mean_fill(windows: Sequence[Sequence[int]], capacity: int) -> float:
  """Share of the rows' tokens that packing these windows fills.

  Raises:
    DataError: the windows hold no token.
  """
  tokens = sum(sum(lengths) for lengths in windows)
  if not tokens:
    raise DataError("the fill of rows was asked of documents without tokens; expected at least one.")
  return tokens / (capacity * sum(len(pack_window(lengths, capacity)) for lengths in windows))


def _best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Places per row, longest document first, each where it leaves the least room; full rows of long documents are not listed."""
  # A tail begins a row of its own: two in one row could not both follow their full rows.
  tails = [(place, n % capacity) for place, n in enumerate(lengths) if n > capacity and n % capacity]
  rows = [[place] for place, _ in tails]
  room = sorted((capacity - n, row) for row, (_, n) in enumerate(tails))
  for n, place in sorted((-n, place) for place, n in enumerate(lengths) if 0 < n <= capacity):
    at = bisect.bisect_left(room, (-n, -1))
    if at < len(room):
      left, row = room.pop(at)
      rows[row].append(place)
    else:
      left, row = capacity, len(rows)
      rows.append([place])
    bisect.insort(room, (left + n, row))
  return rows
