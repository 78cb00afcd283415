"""Wrong actions worth recovering from, and the words with which an agent turns back from one.

An action is proposed by kind, then tried on a fork of the world: only what really fails or misleads is returned. The caller
executes it; its output is never invented.

    wrong_tool            another tool, or a name that does not exist
    wrong_argument        the right tool with another value, another argument or none
    missing_precondition  a right action before the one that makes it possible
    stale_state           an action that an earlier state of the episode allowed and what was done since made impossible
    repeated_action       an action of the episode done again, with the same result
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from maxagent.environments.base import (
  Action,
  Environment,
  Info,
  Move,
  Schema,
  State,
  args_text,
  format_answer,
  format_call,
  parse_action,
)
from maxagent.environments.toolworld.words import DATA
from maxagent.errors import ConfigError

# Each with its odds. The two that look back need no understanding of the task: half as often, they leave room for the others.
_ODDS = {"wrong_tool": 2, "wrong_argument": 2, "missing_precondition": 2, "stale_state": 1, "repeated_action": 1}
KINDS: tuple[str, ...] = tuple(_ODDS)

_T = TypeVar("_T")


class Done(NamedTuple):
  """An action of the episode so far: the state before it, and what the environment answered."""

  state: State
  action: str
  observation: str
  info: Info


class _Moment(NamedTuple):
  env: Environment
  move: Move
  rng: np.random.Generator
  history: Sequence[Done]


def wrong_action(
  env: Environment,
  move: Move,
  rng: np.random.Generator,
  kinds: tuple[str, ...] = KINDS,
  *,
  avoid: tuple[str, ...] = (),
  history: Sequence[Done] = (),
) -> tuple[str, str] | None:
  """An action other than the oracle's that, executed now, fails or brings the goal no nearer; with its kind.

  The kind is drawn by its odds from those of `kinds` that the present state allows; None if it allows none. Without the
  `history` of the episode it allows neither stale_state nor repeated_action. Actions in `avoid` are not proposed again.
  `env` is left as it was.

  Raises:
    ConfigError: a kind that does not exist.
  """
  unknown = [kind for kind in kinds if kind not in _PROPOSALS]
  if unknown:
    raise ConfigError(f"fault kinds {unknown} do not exist; expected some of {', '.join(KINDS)}.")
  moment = _Moment(env, move, rng, history)
  # The largest of draws raised to 1 / odds is each kind's with a chance in proportion to its odds.
  for kind in sorted(kinds, key=lambda kind: -(rng.random() ** (1 / _ODDS[kind]))):
    for action in dict.fromkeys(_PROPOSALS[kind](moment)):
      if action != move.action and action not in avoid and _is_wrong(moment, action, kind):
        return kind, action
  return None


def wrong_answer(env: Environment, rng: np.random.Generator) -> str:
  """An answer that the verifier refuses: the word that came last, taken for what was sought, unless it is right."""
  strangers = (_stranger(rng) for _ in itertools.count())
  answers = map(format_answer, itertools.chain(reversed(env.mentioned), strangers))
  return next(answer for answer in answers if not _tried(env, answer)[1]["success"])


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


def _tried(env: Environment, action: str, state: State | None = None) -> tuple[str, Info, int]:
  """Observation, info and how many actions are needed then, were `action` executed now or in `state`."""
  now = env.get_state()
  if state is not None:
    env.set_state(state)
  observation, _, _, _, info = env.step(action)
  remaining = env.remaining()
  env.set_state(now)
  return observation, info, remaining


def _is_wrong(moment: _Moment, action: str, kind: str) -> bool:
  """Whether the action, tried now, is wrong in the way of its kind."""
  env, _, _, history = moment
  observation, info, remaining = _tried(env, action)
  failed = info["status"] == "err"
  if kind == "stale_state":
    return failed and any(_tried(env, action, done.state)[1]["status"] == "ok" for done in history)
  wrong = failed or remaining >= env.remaining()
  if kind == "repeated_action":
    return wrong and any((action, observation, info) == done[1:] for done in history)
  return wrong and (info["err_kind"] == "precondition") == (kind == "missing_precondition")


def _wrong_tools(moment: _Moment) -> Iterator[str]:
  """Another declared tool with the argument at hand, or the right name cut short."""
  env, move, rng, _ = moment
  right = parse_action(move.action)
  values = [v for v in right.args.values() if isinstance(v, str)] or _words_at_hand(env, rng)
  for tool in _shuffled([*env.tools, None], rng):
    if tool is None:
      name = right.name or env.tools[int(rng.integers(len(env.tools)))]["name"]
      yield format_call(_cut_short(name), args_text(right.args))
    elif tool["name"] != right.name:
      yield format_call(tool["name"], args_text({a: values[int(rng.integers(len(values)))] for a in tool["args"]}))


def _wrong_arguments(moment: _Moment) -> Iterator[str]:
  """The right tool with another value at hand, a word out of nowhere, another tool's argument name, or no argument."""
  env, move, rng, _ = moment
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


def _values_at_hand(env: Environment, value: str) -> list[str]:
  """The words seen but `value`, as they are and where `value` is a path also in its folder."""
  head, slash, _ = value.rpartition("/")
  at_hand = dict.fromkeys(v for w in env.mentioned for v in ((w,) if "/" in w else (head + slash + w, w)))
  return [v for v in at_hand if v not in (value, head + slash + value)]


def _wrong_values(env: Environment, value: str, rng: np.random.Generator) -> list[str]:
  head, slash, tail = value.rpartition("/")
  at_hand = _shuffled(_values_at_hand(env, value), rng)
  stranger = head + slash + _stranger(rng)
  if slash:
    at_hand.insert(0, tail)
  return [stranger, *at_hand] if rng.random() < 0.25 else [*at_hand, stranger]


def _skipped_preconditions(moment: _Moment) -> Iterator[str]:
  if moment.move.early is not None:
    yield moment.move.early


def _done_before(moment: _Moment) -> Iterator[str]:
  yield from _shuffled((done.action for done in moment.history), moment.rng)


def _possible_before(moment: _Moment) -> Iterator[str]:
  """What was done before, and the same with another value that was seen or used."""
  actions = dict.fromkeys((moment.move.action, *(done.action for done in moment.history)))
  calls = [(call.name, *argument) for call in map(parse_action, actions) for argument in call.args.items()]
  used = [value for _, _, value in calls]
  others = [
    format_call(tool, args_text({name: other}))
    for tool, name, value in calls
    for other in (*_values_at_hand(moment.env, str(value)), *used)
  ]
  yield from _shuffled(dict.fromkeys((*actions, *others)), moment.rng)


_PROPOSALS = {
  "wrong_tool": _wrong_tools,
  "wrong_argument": _wrong_arguments,
  "missing_precondition": _skipped_preconditions,
  "stale_state": _possible_before,
  "repeated_action": _done_before,
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
