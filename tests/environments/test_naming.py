"""Words and tool names."""

from __future__ import annotations

import itertools

from maxagent.environments.base import generator, stable_seed
from maxagent.environments.toolworld.naming import draw_names, names_of, split_of
from maxagent.environments.toolworld.words import DATA, NOUNS, VERBS


def test_the_word_pools_are_disjoint_short_and_without_repeats():
  words = [*DATA, *VERBS, *NOUNS]
  assert len(set(words)) == len(words)
  assert all(w.isascii() and w.isalpha() and w.islower() and 2 <= len(w) <= 7 for w in words)


def test_every_name_belongs_to_exactly_one_split_and_each_verb_to_both():
  train, heldout = ([n for group in names_of(split) for n in group] for split in ("train", "heldout"))
  assert not set(train) & set(heldout)
  assert set(train) | set(heldout) == {f"{v}_{n}" for v, n in itertools.product(VERBS, NOUNS)}
  assert 0.15 < len(heldout) / (len(train) + len(heldout)) < 0.25
  assert all(names_of("heldout")) and all(names_of("train"))


def test_the_names_of_an_episode_share_no_word():
  for split in ("train", "heldout"):
    for seed in range(200):
      names = draw_names(generator(seed), 5, split=split)
      assert {split_of(n) for n in names} == {split}
      assert len({word for n in names for word in n.split("_")}) == 10


def test_seeds_are_the_same_on_every_machine():
  assert stable_seed("kv", "train", 1, 7) == 9359282751531219872
  assert stable_seed("a", "bc") != stable_seed("ab", "c")
