"""A key-value store with aliases: open it, resolve an alias to its key or list the keys, rotate the key, get the value."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from maxagent.environments.base import quote
from maxagent.environments.toolworld.world import (
  Gate,
  Result,
  Spec,
  Step,
  Task,
  ToolWorld,
  draw_words,
  own_first,
  places,
  quoted_list,
)

_KEYS_BY_DIFFICULTY = {1: 3, 2: 4, 3: 6}


class KeyValue(ToolWorld):
  """Difficulty n: n aliases in a row lead to the key, or one of 3, 4, 6 listed keys is asked for; from 2 on, rotated first."""

  family = "kv"
  specs: ClassVar[dict[str, Spec]] = {
    "open": Spec("open store"),
    "resolve": Spec("resolve alias", ("alias",)),
    "list": Spec("list keys"),
    "get": Spec("get value", ("key",)),
    "close": Spec("close store"),
    "count": Spec("count keys"),
    "rotate": Spec("rotate key", ("key",)),
  }
  distractors = ("close", "count", "rotate")
  write = "rotate"
  argument_names: ClassVar[dict[str, tuple[str, ...]]] = {"alias": ("alias", "label", "tag"), "key": ("key", "slot", "id")}
  gate = Gate("open", "close", "store open", "store closed", "store already open", "store not open")

  def _draw(self, rng: np.random.Generator) -> list[Task]:
    hops = self._difficulty
    size = _KEYS_BY_DIFFICULTY[hops]
    words = draw_words(rng, 3 * size + hops)
    keys, values, aliases, fresh = words[:size], words[size : 2 * size], words[2 * size : -size], words[-size:]
    self._entries = dict(zip(keys, values, strict=True))
    self._fresh = dict(zip(keys, fresh, strict=True))
    self._aliases = dict(zip(aliases, [*aliases[1:], keys[int(rng.integers(size))]], strict=True))
    listed, rotated = [], []
    for word, place in places(size, difficulty=hops):
      key, listing = keys[place], Step("list")
      listed.append(Task(f"give the value of the {word} key", (listing, Step("get", (key,))), self._entries[key]))
      chain = (listing, Step("rotate", (key,)), Step("get", (key,)))
      rotated.append(Task(f"rotate the {word} key, then give its value", chain, self._entries[key]))
    aliased = [self._alias_task(aliases[n:]) for n in range(hops)]
    own = own_first([listed, aliased[:1], rotated][: 2 + (hops > 1)], rng)
    return [*own, *aliased[1:]]

  def _alias_task(self, aliases: list[str]) -> Task:
    key = self._aliases[aliases[-1]]
    chain = (*(Step("resolve", (alias,)) for alias in aliases), Step("get", (key,)))
    return Task(f"give the value of alias {quote(aliases[0])}", chain, self._entries[key])

  def _look_up(self, role: str, args: tuple[str, ...]) -> Result:
    if role == "list":
      return Result(f"keys {quoted_list([*map(self._now, self._entries)])}")
    if role == "count":
      return Result(f"count {len(self._entries)}")
    (name,) = args
    if role == "resolve":
      return self._resolve(name)
    if self._drawn(name) not in self._entries:
      return Result(f"no key {quote(name)}", "no_key")
    if role == "get":
      return Result(f"value {quote(self._entries[self._drawn(name)])}")
    if name not in self._entries:
      return Result(f"key {quote(name)} already rotated", "already")
    self._renamed[name] = self._fresh[name]
    return Result(f"key {quote(self._now(name))}")

  def _resolve(self, alias: str) -> Result:
    target = self._aliases.get(alias)
    if target is None:
      return Result(f"no alias {quote(alias)}", "no_alias")
    return Result(f"{'alias' if target in self._aliases else 'key'} {quote(self._now(target))}")
