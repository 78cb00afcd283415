"""A key-value store with aliases: open it, resolve an alias to its key or list the keys, get the value."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from maxagent.environments.base import quote
from maxagent.environments.toolworld.world import Gate, Result, Spec, Step, Task, ToolWorld, draw_place, draw_words, quoted_list

_KEYS_BY_DIFFICULTY = {1: 3, 2: 4, 3: 6}


class KeyValue(ToolWorld):
  """Difficulty n: n aliases in a row lead to the key, or one of 3, 4, 6 listed keys is asked for."""

  family = "kv"
  specs: ClassVar[dict[str, Spec]] = {
    "open": Spec("open store"),
    "resolve": Spec("resolve alias", ("alias",)),
    "list": Spec("list keys"),
    "get": Spec("get value", ("key",)),
    "close": Spec("close store"),
    "count": Spec("count keys"),
  }
  distractors = ("close", "count")
  argument_names: ClassVar[dict[str, tuple[str, ...]]] = {"alias": ("alias", "label", "tag"), "key": ("key", "slot", "id")}
  gate = Gate("open", "close", "store open", "store closed", "store already open", "store not open")

  def _draw(self, rng: np.random.Generator) -> Task:
    hops = self._difficulty
    size = _KEYS_BY_DIFFICULTY[hops]
    words = draw_words(rng, 2 * size + hops)
    keys, values, aliases = words[:size], words[size : 2 * size], words[2 * size :]
    self._entries = dict(zip(keys, values, strict=True))
    self._aliases = dict(zip(aliases, [*aliases[1:], keys[int(rng.integers(size))]], strict=True))
    if rng.integers(2):
      return self._alias_task(aliases)
    word, place = draw_place(rng, size, difficulty=self._difficulty)
    chain = (Step("list"), Step("get", (keys[place],)))
    return Task(f"give the value of the {word} key", chain, values[place])

  def _alias_task(self, aliases: list[str]) -> Task:
    key = self._aliases[aliases[-1]]
    chain = (*(Step("resolve", (alias,)) for alias in aliases), Step("get", (key,)))
    return Task(f"give the value of alias {quote(aliases[0])}", chain, self._entries[key])

  def _look_up(self, role: str, args: tuple[str, ...]) -> Result:
    if role == "list":
      return Result(f"keys {quoted_list(list(self._entries))}")
    if role == "count":
      return Result(f"count {len(self._entries)}")
    (name,) = args
    if role == "get":
      value = self._entries.get(name)
      return Result(f"no key {quote(name)}", "no_key") if value is None else Result(f"value {quote(value)}")
    target = self._aliases.get(name)
    if target is None:
      return Result(f"no alias {quote(name)}", "no_alias")
    return Result(f"{'alias' if target in self._aliases else 'key'} {quote(target)}")
