"""What every world offers: reset, step, score, an oracle, and exact copies of its state. Text in, text out."""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash

Schema = dict[str, Any]
State = dict[str, Any]
Info = dict[str, Any]
StepResult = tuple[str, float, bool, bool, Info]

# Most characters of an agent's own text that an error message repeats: a runaway argument must not fill the context.
ECHO_CHARACTERS = 40
# `does` stands before the name: a causal model reads what a tool is for, then its name, and copies what follows a match.
_SCHEMA_ORDER = ("does", "name", "args")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Move:
  """What the oracle would do now.

  `plan` is the list of steps that remain, one per line. `early` is the action that this one makes possible: taken before
  it, that action lacks its precondition.
  """

  action: str
  plan: str | None = None
  think: str | None = None
  early: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Action:
  """An action's text taken apart.

  `kind` is call, answer or malformed; `text` is the answer's, or says what is wrong with a malformed action.
  """

  kind: str
  name: str = ""
  args: dict[str, Any] = dataclasses.field(default_factory=dict)
  text: str = ""
  err_kind: str | None = None


def format_call(name: str, args_json: str) -> str:
  """The action text of a call: `call NAME JSON`."""
  return f"call {name} {args_json}"


def format_answer(text: str) -> str:
  """The action text of a final answer: `answer TEXT`."""
  return f"answer {text}"


def args_text(args: dict[str, Any]) -> str:
  """THE compact JSON text of a call's arguments."""
  return json.dumps(args, ensure_ascii=False, separators=(",", ":"))


def tools_text(tools: Iterable[Schema]) -> str:
  """THE compact text of tool schemas, shared by generation, sampling and play: one JSON array, `does` before name and args."""
  ordered = [{key: tool[key] for key in sorted(tool, key=_schema_rank)} for tool in tools]
  return json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))


def _schema_rank(key: str) -> int:
  return _SCHEMA_ORDER.index(key) if key in _SCHEMA_ORDER else len(_SCHEMA_ORDER)


def parse_action(text: str) -> Action:
  """Takes an action's text apart; never raises, since a malformed action is the agent's error and gets an observation."""
  verb, _, rest = text.strip().partition(" ")
  if verb == "answer":
    return Action(kind="answer", text=rest.strip())
  name, _, args_json = rest.partition(" ")
  if verb != "call" or not name:
    return Action(kind="malformed", text="an action is a call or an answer", err_kind="malformed")
  try:
    args = json.loads(args_json)
  except (ValueError, RecursionError):  # json recurses on nested brackets
    args = None
  if not isinstance(args, dict):
    return Action(kind="malformed", name=name, text="arguments must be a JSON object", err_kind="bad_json")
  return Action(kind="call", name=name, args=args)


def quote(text: str) -> str:
  """Text in double quotes for an observation: shortened, escaped, and free of lone surrogates, which no tokenizer takes."""
  if text.isalpha() and text.isascii() and len(text) <= ECHO_CHARACTERS:
    return f'"{text}"'  # nearly every word; json.dumps costs ten times as much
  shown = text if len(text) <= ECHO_CHARACTERS else text[:ECHO_CHARACTERS] + "..."
  return json.dumps(shown, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")


def stable_seed(*parts: str | int) -> int:
  """64 bits that depend on the parts alone, the same in every process and on every machine (Python's hash() is neither)."""
  return xxhash.xxh64_intdigest("\x1f".join(map(str, parts)).encode())


def generator(*parts: str | int) -> np.random.Generator:
  """A NumPy generator seeded by `stable_seed` of the parts."""
  return np.random.Generator(np.random.PCG64(stable_seed(*parts)))


class Environment(abc.ABC):
  """A world that an agent acts in through text.

  An action is `call NAME JSON` or `answer TEXT`; an answer ends the episode. Whatever the text, `step` gives an observation.
  Only a breach of the protocol raises: `EnvironmentFault` for any use before `reset`, or a step after the end. The turn limit
  is the caller's.
  """

  family: str

  @abc.abstractmethod
  def reset(self, seed: int, goal: str | None = None) -> tuple[str, Info]:
    """Starts the episode of `seed`, or the same world with another of its `goals`.

    Returns the goal's text and {"tools": schemas, "goal": text}.

    Raises:
      EnvironmentFault: `goal` is none of the world's.
    """

  @abc.abstractmethod
  def step(self, text: str) -> StepResult:
    """Executes an action: (observation, reward, terminated, truncated, {"status", "err_kind", "success"}).

    `status` is "ok", "err" or "na" (an answer: the verifier speaks through reward and "success"). An error changes nothing in
    the world. Of `err_kind` one value is common to all families: "precondition", a right call made too early.
    """

  @abc.abstractmethod
  def oracle(self) -> Move:
    """The next action of a shortest solution from the present state, whatever led to it."""

  @abc.abstractmethod
  def remaining(self) -> int:
    """How many actions the oracle still needs, the answer included; 0 at the end."""

  @abc.abstractmethod
  def get_state(self) -> State:
    """A JSON-able copy of everything that the episode's future depends on."""

  @abc.abstractmethod
  def set_state(self, state: State) -> None:
    """Continues exactly from `state`, which may come from another instance made with the same arguments."""

  @property
  @abc.abstractmethod
  def tools(self) -> tuple[Schema, ...]:
    """The schemas that the episode declares: {"does", "name", "args"}."""

  @property
  def goals(self) -> tuple[str, ...]:
    """Every goal that the family could set in this very world; none where it has no notion of another than its own."""
    return ()

  @property
  @abc.abstractmethod
  def mentioned(self) -> tuple[str, ...]:
    """Words that goal and observations have quoted so far: what a mistaken agent could confuse with the right one."""
