"""Wrong actions worth recovering from, and the words with which an agent turns back from one.

An action is proposed by kind, then tried on a fork of the world: only what really fails or misleads is returned. The caller
executes it; its output is never invented.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from maxagent.environments.base import Action, Environment, Move, Schema, args_text, format_call, parse_action
from maxagent.environments.toolworld.words import DATA
from maxagent.errors import ConfigError

KINDS: tuple[str, ...] = ("wrong_tool", "wrong_argument", "missing_precondition")

_T = TypeVar("_T")


def wrong_action(
  env: Environment,
  move: Move,
  rng: np.random.Generator,
  kinds: tuple[str, ...] = KINDS,
  *,
  avoid: tuple[str, ...] = (),
) -> tuple[str, str] | None:
  """An action other than the oracle's that, executed now, fails or brings the goal no nearer; with its kind.

  The kind is drawn evenly from those of `kinds` that the present state allows; None if it allows none. Actions in `avoid` are
  not proposed again. `env` is left as it was.

  Raises:
    ConfigError: a kind that does not exist.
  """
  unknown = [kind for kind in kinds if kind not in _PROPOSALS]
  if unknown:
    raise ConfigError(f"fault kinds {unknown} do not exist; expected some of {', '.join(KINDS)}.")
  for kind in _shuffled(kinds, rng):
    for action in _PROPOSALS[kind](env, move, rng):
      if action != move.action and action not in avoid and _is_wrong(env, action, kind):
        return kind, action
  return None


def reflection(
  failed: str, following: str, *, tools: tuple[Schema, ...], err_kind: str | None, rng: np.random.Generator
) -> str:
  """Names what changes from the failed action to the one that follows, in one of two phrasings."""
  before, after = parse_action(failed), parse_action(following)
  phrasings = _changes(before, after, tools, err_kind)
  return phrasings[int(rng.integers(len(phrasings)))]


def _changes(before: Action, after: Action, tools: tuple[Schema, ...], err_kind: str | None) -> tuple[str, str]:
  if after.kind == "answer":
    return "answer now", "all is known, answer"
  does = next((tool["does"] for tool in tools if tool["name"] == after.name), None)
  if does is None or err_kind == "no_tool":
    return f'use "{after.name}"', f'the name is "{after.name}"'
  if err_kind == "precondition":
    return f"{does} first", f"{does} before that"
  if before.name != after.name:
    return f"{does} instead", f"{does} is needed"
  name, value = next(iter(after.args.items()), (None, None))
  if name is None:
    return "no arguments", "without arguments"
  if name not in before.args:
    return f'argument is "{name}"', f'argument must be "{name}"'
  return f'use "{value}", not "{before.args[name]}"', f'not "{before.args[name]}" but "{value}"'


def _is_wrong(env: Environment, action: str, kind: str) -> bool:
  state, needed = env.get_state(), env.remaining()
  _, _, terminated, _, info = env.step(action)
  still_needed = env.remaining()
  env.set_state(state)
  if terminated or (info["err_kind"] == "precondition") != (kind == "missing_precondition"):
    return False
  return info["status"] == "err" or bool(still_needed >= needed)


def _wrong_tools(env: Environment, move: Move, rng: np.random.Generator) -> Iterator[str]:
  """Another declared tool with the argument at hand, or the right name cut short."""
  right = parse_action(move.action)
  values = [v for v in right.args.values() if isinstance(v, str)] or _words_at_hand(env, rng)
  for tool in _shuffled([*env.tools, None], rng):
    if tool is None:
      name = right.name or env.tools[int(rng.integers(len(env.tools)))]["name"]
      yield format_call(_cut_short(name), args_text(right.args))
    elif tool["name"] != right.name:
      yield format_call(tool["name"], args_text({a: values[int(rng.integers(len(values)))] for a in tool["args"]}))


def _wrong_arguments(env: Environment, move: Move, rng: np.random.Generator) -> Iterator[str]:
  """The right tool with another value at hand, a word out of nowhere, another tool's argument name, or no argument."""
  right = parse_action(move.action)
  if right.kind != "call":
    return
  names = _shuffled({a: None for tool in env.tools for a in tool["args"] if a not in right.args}, rng)
  if not right.args:
    words = _words_at_hand(env, rng)
    yield from (format_call(right.name, args_text({name: words[int(rng.integers(len(words)))]})) for name in names)
    return
  argument, value = next(iter(right.args.items()))
  misnamed = [*({name: value} for name in names[:1]), {}]
  misvalued = [{argument: v} for v in _wrong_values(env, str(value), rng)]
  # Most mistakes are of the value: three in four.
  proposals = [*misvalued, *misnamed] if rng.random() < 0.75 else [*_shuffled(misnamed, rng), *misvalued]
  yield from (format_call(right.name, args_text(args)) for args in proposals)


def _wrong_values(env: Environment, value: str, rng: np.random.Generator) -> list[str]:
  head, slash, tail = value.rpartition("/")
  at_hand = _shuffled(dict.fromkeys(v for w in env.mentioned for v in ((w,) if "/" in w else (head + slash + w, w))), rng)
  at_hand = [v for v in at_hand if v not in (value, head + slash + value)]
  stranger = head + slash + _stranger(rng)
  if slash:
    at_hand.insert(0, tail)
  return [stranger, *at_hand] if rng.random() < 0.25 else [*at_hand, stranger]


def _skipped_preconditions(env: Environment, move: Move, rng: np.random.Generator) -> Iterator[str]:
  del env, rng
  if move.early is not None:
    yield move.early


_PROPOSALS = {
  "wrong_tool": _wrong_tools,
  "wrong_argument": _wrong_arguments,
  "missing_precondition": _skipped_preconditions,
}


def _words_at_hand(env: Environment, rng: np.random.Generator) -> list[str]:
  return list(env.mentioned) or [_stranger(rng)]


def _stranger(rng: np.random.Generator) -> str:
  return DATA[int(rng.integers(len(DATA)))]


def _cut_short(name: str) -> str:
  # Mixing two names could spell a name of the other split; half a name is in neither.
  return name.rpartition("_")[0] or name[:-1]


def _shuffled(items: Iterable[_T], rng: np.random.Generator) -> list[_T]:
  ordered = list(items)
  return [ordered[i] for i in rng.permutation(len(ordered)).tolist()]
