"""What the toolworld families share: schemas, execution, the verifier, the oracle and exact state.

A family adds its data and three things: how an episode is drawn, what a lookup returns, and its tools. Every world has one
gate: a tool that must be called before the lookups work (open the store, mount the disk).
"""

from __future__ import annotations

import abc
import re
from typing import Any, ClassVar, NamedTuple

import numpy as np

from maxagent.environments import base
from maxagent.environments.toolworld import naming
from maxagent.environments.toolworld.words import DATA
from maxagent.errors import EnvironmentFault

DIFFICULTIES: tuple[int, ...] = (1, 2, 3)
ORDINALS: tuple[str, ...] = ("first", "second", "third")
_QUOTED = re.compile(r'"([^"]*)"')


class Spec(NamedTuple):
  """A tool's role in the world: the fixed phrase that its schema shows, and what its arguments mean."""

  does: str
  args: tuple[str, ...] = ()


class Step(NamedTuple):
  """A lookup by role and argument values."""

  role: str
  args: tuple[str, ...] = ()


class Task(NamedTuple):
  """An episode: each step of `chain` needs what the one before it returned; the last one returns `answer`."""

  goal: str
  chain: tuple[Step, ...]
  answer: str


class Result(NamedTuple):
  """What executing a call gave."""

  text: str
  err_kind: str | None = None


class Gate(NamedTuple):
  """The roles that make the world ready and unready, and what it says then."""

  enter: str
  leave: str
  entered: str
  left: str
  already: str
  missing: str


class ToolWorld(base.Environment):
  """A world of lookups behind a gate.

  State is the seed (which gives all data), whether the gate is open, the lookups of the solution that have succeeded (what the
  agent knows) and the words it has seen quoted.
  """

  specs: ClassVar[dict[str, Spec]]
  distractors: ClassVar[tuple[str, ...]]  # roles no solution needs; one of them is declared from difficulty 2 on
  argument_names: ClassVar[dict[str, tuple[str, ...]]]  # an argument's meaning to the names it may carry
  gate: ClassVar[Gate]

  def __init__(self, split: str, difficulty: int) -> None:
    self._split = split
    self._difficulty = difficulty
    self._seed: int | None = None

  @abc.abstractmethod
  def _draw(self, rng: np.random.Generator) -> Task:
    """Draws the episode's data and task."""

  @abc.abstractmethod
  def _look_up(self, role: str, args: tuple[str, ...]) -> Result:
    """What a lookup returns behind the open gate."""

  # The episode

  def reset(self, seed: int) -> tuple[str, base.Info]:
    """Starts the episode that (family, split, difficulty, seed) names."""
    rng = base.generator(self.family, self._split, self._difficulty, seed)
    self._seed = seed
    self._task = self._draw(rng)
    self._declare_tools(rng)
    self._ready = False
    self._known: tuple[Step, ...] = ()
    self._seen = tuple(_QUOTED.findall(self._task.goal))
    self._terminated = False
    self._success = False
    return self._task.goal, {"tools": self._tools, "goal": self._task.goal}

  def _declare_tools(self, rng: np.random.Generator) -> None:
    roles = [r for r in self.specs if r not in self.distractors]
    if self._difficulty >= 2:
      roles.append(self.distractors[int(rng.integers(len(self.distractors)))])
    roles = [roles[i] for i in rng.permutation(len(roles)).tolist()]
    pick = rng.integers(1 << 16)
    arguments = {m: names[int(pick) % len(names)] for m, names in self.argument_names.items()}
    self._roles = dict(zip(naming.draw_names(rng, len(roles), split=self._split), roles, strict=True))
    self._names = {role: name for name, role in self._roles.items()}
    self._arguments = {role: tuple(arguments[m] for m in self.specs[role].args) for role in roles}
    self._tools: tuple[base.Schema, ...] = tuple(
      {"does": self.specs[role].does, "name": name, "args": list(self._arguments[role])} for name, role in self._roles.items()
    )

  def step(self, text: str) -> base.StepResult:
    """Executes `text`; see `Environment.step`."""
    self._require_running()
    action = base.parse_action(text)
    if action.kind == "answer":
      self._terminated = True
      self._success = action.text == self._task.answer
      return "", float(self._success), True, False, {"status": "na", "err_kind": None, "success": self._success}
    result = Result(action.text, action.err_kind) if action.kind == "malformed" else self._call(action)
    status = "err" if result.err_kind else "ok"
    return result.text, 0.0, False, False, {"status": status, "err_kind": result.err_kind, "success": False}

  def _call(self, action: base.Action) -> Result:
    role = self._roles.get(action.name)
    if role is None:
      return Result(f"no tool {base.quote(action.name)}", "no_tool")
    refusal = self._check_arguments(role, action.args)
    if refusal:
      return refusal
    step = Step(role, tuple(action.args[name] for name in self._arguments[role]))
    result = self._execute(step)
    if result.err_kind is None:
      self._see(step, result.text)
    return result

  def _check_arguments(self, role: str, args: dict[str, Any]) -> Result | None:
    names = self._arguments[role]
    if not names and args:
      return Result("takes no arguments", "bad_args")
    for name in names:
      if not isinstance(args.get(name), str):
        return Result(f"needs {base.quote(name)}", "bad_args")
    extra = next((name for name in args if name not in names), None)
    return None if extra is None else Result(f"no argument {base.quote(extra)}", "bad_args")

  def _execute(self, step: Step) -> Result:
    gate = self.gate
    if step.role == gate.enter:
      if self._ready:
        return Result(gate.already, "already")
      self._ready = True
      return Result(gate.entered)
    if not self._ready:
      return Result(gate.missing, "precondition")
    if step.role == gate.leave:
      self._ready = False
      return Result(gate.left)
    return self._look_up(step.role, step.args)

  def _see(self, step: Step, text: str) -> None:
    if step not in self._known and step in self._task.chain:
      self._known += (step,)
    fresh = dict.fromkeys(word for word in _QUOTED.findall(text) if word not in self._seen)
    self._seen += tuple(fresh)

  def _require_reset(self) -> None:
    if self._seed is None:
      raise EnvironmentFault(f"environment {self.family!r} was used before reset; call reset(seed) first.")

  def _require_running(self) -> None:
    self._require_reset()
    if self._terminated:
      raise EnvironmentFault(f"the episode of environment {self.family!r} has ended; call reset(seed) for the next one.")

  # The oracle

  def _rest(self) -> tuple[Step, ...]:
    """The part of the chain after the last lookup whose result the agent knows."""
    chain = self._task.chain
    known = max((n for n, step in enumerate(chain, 1) if step in self._known), default=0)
    return chain[known:]

  def oracle(self) -> base.Move:
    """The gate if a lookup needs it, else the next lookup of the chain, else the answer."""
    self._require_running()
    rest = self._rest()
    if not rest:
      return base.Move(action=base.format_answer(self._task.answer))
    blocked = not self._ready
    steps = (Step(self.gate.enter), *rest) if blocked else rest
    # A chain's length shows only while walking it: a plan names a repeated kind of step once.
    plan = "\n".join(dict.fromkeys(self.specs[step.role].does for step in steps))
    return base.Move(action=self._action(steps[0]), plan=plan, early=self._action(rest[0]) if blocked else None)

  def _action(self, step: Step) -> str:
    args = dict(zip(self._arguments[step.role], step.args, strict=True))
    return base.format_call(self._names[step.role], base.args_text(args))

  def remaining(self) -> int:
    """Lookups left, the gate if one is left and it is closed, and the answer."""
    self._require_reset()
    if self._terminated:
      return 0
    rest = len(self._rest())
    return rest + (rest > 0 and not self._ready) + 1

  # Exact state

  def get_state(self) -> base.State:
    """See `Environment.get_state`."""
    self._require_reset()
    return {
      **self._identity(),
      "seed": self._seed,
      "ready": self._ready,
      "known": [[step.role, *step.args] for step in self._known],
      "seen": list(self._seen),
      "terminated": self._terminated,
      "success": self._success,
    }

  def set_state(self, state: base.State) -> None:
    """See `Environment.set_state`.

    Raises:
      EnvironmentFault: the state belongs to another family, split or difficulty.
    """
    identity = self._identity()
    given = {key: state.get(key) for key in identity}
    if given != identity:
      raise EnvironmentFault(f"state is of {given}; expected one of {identity}: make the environment that it came from.")
    if state["seed"] != self._seed:
      self.reset(state["seed"])
    self._ready = state["ready"]
    self._known = tuple(Step(role, tuple(args)) for role, *args in state["known"])
    self._seen = tuple(state["seen"])
    self._terminated = state["terminated"]
    self._success = state["success"]

  def _identity(self) -> dict[str, Any]:
    return {"family": self.family, "split": self._split, "difficulty": self._difficulty}

  @property
  def tools(self) -> tuple[base.Schema, ...]:
    """See `Environment.tools`."""
    self._require_reset()
    return self._tools

  @property
  def mentioned(self) -> tuple[str, ...]:
    """See `Environment.mentioned`."""
    self._require_reset()
    return self._seen


def draw_words(rng: np.random.Generator, count: int) -> list[str]:
  """`count` different words: within an episode a word means one thing."""
  return [DATA[i] for i in rng.permutation(len(DATA))[:count].tolist()]


def draw_place(rng: np.random.Generator, length: int, *, difficulty: int) -> tuple[str, int]:
  """A place in a list, as the word that names it and its index: first or last, and from difficulty 2 on the middle ones too."""
  named = min(difficulty, length - 1)
  place = int(rng.integers(named + 1))
  return (ORDINALS[place], place) if place < named else ("last", length - 1)


def quoted_list(words: list[str]) -> str:
  """`"a","b"`: no space inside, so that a word has the same neighbours here as in a call's JSON."""
  return ",".join(map(base.quote, words))
