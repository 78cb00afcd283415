from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from maxagent.data.packing import pack_window, window_is_full

CAPACITY = 50
PIECES = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=1) | st.lists(st.integers(1, CAPACITY), min_size=2, max_size=4)
DOCUMENTS = st.lists(PIECES, max_size=40)


@given(DOCUMENTS)
def test_every_piece_of_a_window_lies_in_exactly_one_row(documents: list[list[int]]) -> None:
  found = sorted(piece for row in pack_window(documents, CAPACITY) for piece in row)
  assert found == [(place, piece) for place, pieces in enumerate(documents) for piece in range(len(pieces))]


@given(DOCUMENTS)
def test_no_row_holds_more_than_its_capacity_or_nothing(documents: list[list[int]]) -> None:
  for row in pack_window(documents, CAPACITY):
    assert 0 < sum(documents[place][piece] for place, piece in row) <= CAPACITY


@given(DOCUMENTS)
def test_the_pieces_of_a_long_document_lie_in_consecutive_rows_and_lead_them(documents: list[list[int]]) -> None:
  rows = pack_window(documents, CAPACITY)
  for place, pieces in enumerate(documents):
    if len(pieces) > 1:
      numbers = [number for number, row in enumerate(rows) if any(p == place for p, _ in row)]
      assert numbers == list(range(numbers[0], numbers[0] + len(pieces)))
      assert [rows[number][0] for number in numbers] == [(place, piece) for piece in range(len(pieces))]


def test_the_example_of_the_docstring_holds() -> None:
  rows = pack_window([[6], [10, 10, 3], [8], [2]], 10)
  assert rows == [((1, 0),), ((1, 1),), ((1, 2), (0, 0)), ((2, 0), (3, 0))]


def test_log_normal_traces_fill_rows_to_ninety_five_percent_with_the_default_window() -> None:
  rng = np.random.default_rng(0)
  tokens = rows = 0
  for _ in range(50):
    lengths = np.clip(rng.lognormal(np.log(0.3 * 4096), 0.8, 64), 2, None).astype(int).tolist()
    documents = [[4096] * (n // 4096) + [n % 4096] * (n % 4096 > 0) for n in lengths]
    tokens, rows = tokens + sum(lengths), rows + len(pack_window(documents, 4096))
  assert tokens / (4096 * rows) > 0.95


def test_a_window_of_short_documents_is_longer_so_that_its_last_row_weighs_little() -> None:
  assert not window_is_full(63, 10**9, window=64, capacity=100)
  assert window_is_full(64, 1575, window=64, capacity=100)
  assert not window_is_full(64, 1574, window=64, capacity=100)
  rng = np.random.default_rng(0)
  tokens = rows = 0
  for _ in range(5):  # 64 of them are 3 rows
    lengths: list[int] = []
    while not window_is_full(len(lengths), sum(lengths), window=64, capacity=4096):
      lengths.append(int(rng.integers(2, 400)))
    tokens, rows = tokens + sum(lengths), rows + len(pack_window([[n] for n in lengths], 4096))
  assert tokens / (4096 * rows) > 0.98
