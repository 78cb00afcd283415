from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxagent.data.document import Document
from maxagent.data.safety.repeats import mute_all, mute_repeats, repeated
from maxagent.traces.schema import Flag


def naive(ids: list[int], longest: int, repeats: int) -> list[bool]:
  mask = [False] * len(ids)
  for n in range(1, longest + 1):
    for start in range(len(ids) - n * repeats + 1):
      if ids[start : start + n * repeats] == ids[start : start + n] * repeats:
        mask[start : start + n * repeats] = [True] * (n * repeats)
  return mask


def document(ids: list[int] | npt.NDArray[np.int32], flags: int = 0) -> Document:
  zeros = np.zeros(len(ids), np.uint8)
  return Document(np.array(ids, np.int32), zeros, zeros, np.full(len(ids), flags, np.uint8))


# Runs of copies between noise, so that most examples hold a run of about the length that counts.
pieces = st.tuples(
  st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(1, 14), st.lists(st.integers(0, 3), max_size=3)
)
texts = st.lists(pieces, max_size=4).map(lambda ps: [i for gram, n, noise in ps for i in [*(gram * n), *noise]])


@settings(max_examples=300, deadline=None)
@given(texts, st.integers(1, 5), st.integers(2, 12))
def test_the_mask_is_that_of_the_definition(ids: list[int], longest: int, repeats: int) -> None:
  assert repeated(np.array(ids, np.int32), longest=longest, repeats=repeats).tolist() == naive(ids, longest, repeats)


@pytest.mark.parametrize("n", [1, 2, 7, 13])
@pytest.mark.parametrize("before", [0, 1, 3, 50])
def test_32_copies_are_muted_and_31_are_not(n: int, before: int) -> None:
  noise = list(range(100, 100 + before))
  for copies, expected in ((31, 0), (32, 32 * n), (33, 33 * n)):
    ids = noise + list(range(n)) * copies + [999]
    mask = repeated(np.array(ids, np.int32))
    assert mask.sum() == expected and mask.tolist() == naive(ids, 13, 32)


def test_a_repeated_14_gram_is_left_alone() -> None:
  assert not repeated(np.array(list(range(14)) * 40, np.int32)).any()


def test_muting_keeps_what_a_token_was_flagged_with_and_everything_else() -> None:
  before = document([5] * 32 + [6], flags=Flag.ADDED)
  after = mute_repeats(before)
  assert after.flags.tolist() == [Flag.ADDED | Flag.MUTED] * 32 + [Flag.ADDED]
  assert after.ids is before.ids and after.roles is before.roles and before.flags.tolist() == [Flag.ADDED] * 33


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, max_size=6))
def test_documents_muted_together_are_as_if_muted_alone(many: list[list[int]]) -> None:
  documents = [document(ids) for ids in many]
  together = mute_all(documents, longest=5, repeats=3)
  alone = [mute_repeats(d, longest=5, repeats=3) for d in documents]
  assert [d.flags.tolist() for d in together] == [d.flags.tolist() for d in alone]


def test_equal_short_documents_in_a_row_are_no_repetition() -> None:
  assert not any(d.flags.any() for d in mute_all([document([1, 7, 2])] * 50))
