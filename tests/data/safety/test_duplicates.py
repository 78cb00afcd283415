from __future__ import annotations

import random

import pytest

from maxagent.data.safety.duplicates import NearDuplicates, signature
from maxagent.data.safety.words import words
from maxagent.errors import ConfigError


def texts(count: int, length: int = 300, seed: int = 0) -> list[list[str]]:
  chance = random.Random(seed)
  return [[f"word{chance.randrange(3000)}" for _ in range(length)] for _ in range(count)]


def scattered(text: list[str], share: float, chance: random.Random) -> list[str]:
  return [f"other{chance.randrange(99)}" if chance.random() < share else word for word in text]


def in_one_place(text: list[str], share: float, chance: random.Random) -> list[str]:
  size = int(len(text) * share)
  start = chance.randrange(len(text) - size)
  return [*text[:start], *(f"other{n}" for n in range(size)), *text[start + size :]]


def find(seen: NearDuplicates, text: str, key: str) -> str | None:
  return seen.find(signature(words(text)), key)


def found(seen: NearDuplicates, edited: list[list[str]]) -> float:
  return sum(find(seen, " ".join(t), "edited") == f"{n:03}" for n, t in enumerate(edited)) / len(edited)


def remember(threshold: float, originals: list[list[str]]) -> NearDuplicates:
  seen = NearDuplicates(threshold)
  for n, text in enumerate(originals):
    assert find(seen, " ".join(text), f"{n:03}") is None
  return seen


@pytest.mark.parametrize(("threshold", "share", "least"), [(0.8, 0.005, 0.98), (0.7, 0.02, 0.9), (0.5, 0.05, 0.9)])
def test_texts_with_words_changed_here_and_there_are_found(threshold: float, share: float, least: float) -> None:
  originals = texts(200)
  chance = random.Random(1)
  assert found(remember(threshold, originals), [scattered(t, share, chance) for t in originals]) >= least


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_texts_with_a_changed_passage_are_found_at_the_default(share: float) -> None:
  originals = texts(200)
  chance = random.Random(1)
  assert found(remember(0.8, originals), [in_one_place(t, share, chance) for t in originals]) >= 0.97


def test_different_texts_of_the_same_words_are_kept() -> None:
  assert len(remember(0.5, texts(500))) == 500


def test_texts_that_share_half_their_ngrams_are_kept_at_the_default() -> None:
  originals = texts(100)
  other = [[*text[:225], *rest[225:]] for text, rest in zip(originals, texts(100, seed=9), strict=True)]
  assert found(remember(0.8, originals), other) == 0  # similarity 0.6


def test_case_and_punctuation_do_not_hide_a_copy() -> None:
  seen = NearDuplicates()
  assert find(seen, "A robe takes two bolts of blue fiber.", "a") is None
  assert find(seen, "a robe, takes TWO bolts of blue fiber!", "b") == "a"


def test_short_texts_are_compared_whole_and_empty_ones_not_at_all() -> None:
  seen = NearDuplicates()
  assert [find(seen, t, t) for t in ("one two", "one three", "One two!", "", "")] == [None, None, "one two", None, None]


def test_the_same_stream_gives_the_same_answers() -> None:
  stream = [" ".join(t) for t in texts(50) + [scattered(t, 0.03, random.Random(2)) for t in texts(50)]]
  answers = []
  for _ in range(2):
    seen = NearDuplicates(0.6)
    answers.append([find(seen, text, f"{n:03}") for n, text in enumerate(stream)])
  assert answers[0] == answers[1] and any(answers[0])


def test_documents_of_one_origin_are_all_remembered() -> None:
  seen = NearDuplicates()
  first, second = (" ".join(t) for t in texts(2))
  assert [find(seen, t, "same file") for t in (first, second, first, second)] == [None, None, "same file", "same file"]


@pytest.mark.parametrize("threshold", [0, -0.5, 1.5])
def test_a_threshold_that_is_no_similarity_is_refused(threshold: float) -> None:
  with pytest.raises(ConfigError, match=f"near_duplicates is {threshold}"):
    NearDuplicates(threshold)
