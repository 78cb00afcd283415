"""Environments by family name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from maxagent.environments.base import Environment, Schema
from maxagent.environments.toolworld.files import Files
from maxagent.environments.toolworld.kv import KeyValue
from maxagent.environments.toolworld.naming import SPLITS
from maxagent.environments.toolworld.world import DIFFICULTIES
from maxagent.errors import ConfigError

_FAMILIES: dict[str, Callable[[str, int], Environment]] = {"files": Files, "kv": KeyValue}


def families() -> tuple[str, ...]:
  """The registered family names, sorted."""
  return tuple(sorted(_FAMILIES))


def make(family: str, *, split: str, difficulty: int = 1) -> Environment:
  """A fresh environment; call `reset` before anything else.

  Raises:
    ConfigError: a family, split or difficulty that does not exist.
  """
  if family not in _FAMILIES:
    raise ConfigError(f"environment family is {family!r}; registered are {', '.join(families())}.")
  if split not in SPLITS:
    raise ConfigError(f"environment split is {split!r}; expected one of {', '.join(SPLITS)}.")
  if difficulty not in DIFFICULTIES:
    raise ConfigError(f"environment difficulty is {difficulty!r}; expected one of {', '.join(map(str, DIFFICULTIES))}.")
  return _FAMILIES[family](split, difficulty)


def find(family: str, seed: int | None, *, tools: Sequence[Schema], goal: str) -> Environment | None:
  """The environment whose episode of `seed` has these tools and could have this goal, at its start; None if there is none.

  A stored trace names neither split nor difficulty: each is tried.
  """
  if seed is None or family not in _FAMILIES:
    return None
  for split, difficulty in itertools.product(SPLITS, DIFFICULTIES):
    env = make(family, split=split, difficulty=difficulty)
    own, _ = env.reset(seed)
    if list(env.tools) == list(tools) and goal in (own, *env.goals):
      if goal != own:
        env.reset(seed, goal)
      return env
  return None
