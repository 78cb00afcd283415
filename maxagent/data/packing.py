"""Whole documents into rows: where a window of them ends, and which of them share a row."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

Bin = tuple[tuple[int, int], ...]  # (place of a document in its window, number of its piece)


# A window ends in a row that is half empty: of 4.5 rows (64 traces of gsm8k in rows of 4,096) that is 10%.
_LEAST_ROWS = 4


def window_is_full(documents: int, tokens: int, *, window: int, capacity: int) -> bool:
  """Whether a packing window ends: it has `window` documents, and tokens for nearly a quarter as many rows of `capacity`.

  Nearly: short documents then end a quarter of a row before the last of those rows is full, not in the next.
  """
  return documents >= window and tokens * _LEAST_ROWS >= (window - 1) * capacity


def pack_window(documents: Sequence[Sequence[int]], capacity: int) -> list[Bin]:
  """Rows of at most `capacity` tokens by best-fit decreasing; every piece once.

  Args:
    documents: the tokens of each document's pieces, in order, none more than `capacity`. A document that is longer than a row
      has several; they take consecutive rows, and all but the last have theirs alone.
    capacity: of a row.

  Rows come in the order of the first document in them, which is random, as the order of documents is.

  Example, capacity 10:
      documents [[6], [10, 10, 3], [8], [2]] gives [((1, 0)), ((1, 1)), ((1, 2), (0, 0)), ((2, 0), (3, 0))]
  """
  bins: list[Bin] = []
  for row in sorted(_best_fit(documents, capacity), key=min):
    # A long document's last piece leads its row, whatever joined it.
    lead, *others = sorted(row, key=lambda place: (len(documents[place]) == 1, place))
    last = len(documents[lead]) - 1
    bins += [((lead, piece),) for piece in range(last)]
    bins.append(((lead, last), *((place, 0) for place in others)))
  return bins


def _best_fit(documents: Sequence[Sequence[int]], capacity: int) -> list[list[int]]:
  """Places per row, longest last piece first, each where it leaves the least room."""
  # The end of a long document begins a row: two in one row could not both follow their full rows.
  rows = [[place] for place, pieces in enumerate(documents) if len(pieces) > 1]
  room = sorted((capacity - documents[place][-1], row) for row, (place,) in enumerate(rows))
  for n, place in sorted((-pieces[0], place) for place, pieces in enumerate(documents) if len(pieces) == 1):
    at = bisect.bisect_left(room, (-n, -1))
    if at < len(room):
      left, row = room.pop(at)
      rows[row].append(place)
    else:
      left, row = capacity, len(rows)
      rows.append([place])
    bisect.insort(room, (left + n, row))
  return rows
