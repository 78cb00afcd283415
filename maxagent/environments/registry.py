"""Environments by family name."""

from __future__ import annotations

from collections.abc import Callable

from maxagent.environments.base import Environment
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
