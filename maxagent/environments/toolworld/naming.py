"""Tool names that change per episode; whole names are split by hash into training and held-out ones."""

from __future__ import annotations

import functools

import numpy as np

from maxagent.environments.base import stable_seed
from maxagent.environments.toolworld.words import NOUNS, VERBS

SPLITS: tuple[str, ...] = ("train", "heldout")
_HELDOUT_ONE_IN = 5


def split_of(name: str) -> str:
  """The only split in which a tool may carry this name."""
  return "heldout" if stable_seed("tool name", name) % _HELDOUT_ONE_IN == 0 else "train"


@functools.cache
def names_of(split: str) -> tuple[tuple[str, ...], ...]:
  """The split's names, grouped by verb in the order of VERBS."""
  return tuple(tuple(n for noun in NOUNS if split_of(n := f"{verb}_{noun}") == split) for verb in VERBS)


def draw_names(rng: np.random.Generator, count: int, *, split: str) -> list[str]:
  """`count` names of the split that share neither verb nor noun, so that the first word of a name already tells the tool."""
  chosen: list[str] = []
  nouns: set[str] = set()
  by_verb = names_of(split)
  for verb in rng.permutation(len(VERBS)).tolist():
    free = [n for n in by_verb[verb] if n.partition("_")[2] not in nouns]
    if free:
      name = free[int(rng.integers(len(free)))]
      chosen.append(name)
      nouns.add(name.partition("_")[2])
    if len(chosen) == count:
      break
  assert len(chosen) == count, "the pools hold more verbs than any world has tools"
  return chosen
