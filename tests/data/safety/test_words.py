from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from maxagent.data.safety.words import ngrams, normalise, words


def test_case_punctuation_and_white_space_make_no_difference() -> None:
  assert normalise("Don't -- stop; \"it's\" FINE!").split() == b"dont stop its fine".split()
  left, right = words("Janet’s ducks,\n\tlay 16 “eggs”!"), words("janets DUCKS lay 16 eggs")
  assert left.hashes.tolist() == right.hashes.tolist()


def test_chinese_characters_are_words_of_their_own() -> None:
  assert len(words("今天天气 is fine")) == 6


def test_words_that_differ_have_different_hashes() -> None:
  text = " ".join(f"w{n}" for n in range(20_000)) + " ab ba abab " + "x" * 5000 + " " + "x" * 5001
  assert len(np.unique(words(text).hashes)) == len(words(text)) == 20_005


@given(st.lists(st.sampled_from(["a", "b", "dog", "it's", "é", "--"]), max_size=30), st.integers(1, 6))
def test_ngrams_are_equal_where_the_words_are(text: list[str], n: int) -> None:
  found = words(" ".join(text))
  plain = normalise(" ".join(text)).decode().split()
  runs = [tuple(plain[i : i + n]) for i in range(len(plain) - n + 1)]
  hashes = ngrams(found.hashes, n).tolist()
  assert len(hashes) == len(runs) and len(set(hashes)) == len(set(runs))
  assert dict(zip(runs, hashes, strict=True)) == {run: h for run, h in zip(runs, hashes, strict=True)}
  assert [found.show(i, n).split() for i in range(len(runs))] == [list(run) for run in runs]


def test_hashes_are_the_same_on_every_machine() -> None:
  assert [hex(h) for h in words("a robe").hashes.tolist()] == GOLDEN


def test_a_text_without_words_has_none() -> None:
  assert [len(words(text)) for text in ("", " \n", "?!")] == [0, 0, 0]


GOLDEN = ["0xb74486510f5ae030", "0x3f475ac52f1180d1"]
