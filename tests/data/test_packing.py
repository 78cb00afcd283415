from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxagent.data.packing import Chunk, mean_fill, pack_window
from maxagent.errors import DataError

LENGTHS = st.lists(st.integers(0, 100), max_size=40)
CAPACITY = st.integers(1, 50)


@given(LENGTHS, CAPACITY)
def test_every_token_of_a_window_lies_in_exactly_one_row(lengths: list[int], capacity: int) -> None:
  rows = pack_window(lengths, capacity)
  found = sorted((chunk.place, token) for row in rows for chunk in row for token in range(chunk.start, chunk.stop))
  assert found == [(place, token) for place, n in enumerate(lengths) for token in range(n)]


@given(LENGTHS, CAPACITY)
def test_no_row_holds_more_than_its_capacity_or_nothing(lengths: list[int], capacity: int) -> None:
  assert all(0 < sum(map(len, row)) <= capacity for row in pack_window(lengths, capacity))


@given(LENGTHS, CAPACITY)
def test_a_document_is_whole_where_it_fits_and_consecutive_where_not(lengths: list[int], capacity: int) -> None:
  rows = pack_window(lengths, capacity)
  for place, n in enumerate(lengths):
    pieces = [(number, chunk) for number, row in enumerate(rows) for chunk in row if chunk.place == place]
    assert len(pieces) == -(-n // capacity)
    numbers = [number for number, _ in pieces]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if pieces else n == 0
    assert [chunk.start for _, chunk in pieces] == [i * capacity for i in range(len(pieces))]


def test_the_example_of_the_docstring_holds() -> None:
  assert pack_window([6, 23, 8, 2], 10) == [
    (Chunk(1, 0, 10),),
    (Chunk(1, 10, 20),),
    (Chunk(1, 20, 23), Chunk(0, 0, 6)),
    (Chunk(2, 0, 8), Chunk(3, 0, 2)),
  ]


def test_log_normal_traces_fill_rows_to_ninety_five_percent_with_the_default_window() -> None:
  rng = np.random.default_rng(0)
  windows = [np.maximum(2, rng.lognormal(np.log(0.3 * 4096), 0.8, 64)).astype(int).tolist() for _ in range(50)]
  assert mean_fill(windows, 4096) > 0.95


def test_the_fill_of_nothing_is_an_error() -> None:
  with pytest.raises(DataError, match="without tokens"):
    mean_fill([[], [0]], 8)
