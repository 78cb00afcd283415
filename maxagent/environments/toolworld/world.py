"""What the toolworld families share: schemas, execution, the verifier, the oracle and exact state.

A family adds its data and three things: how an episode is drawn, what its tools do, and how they are declared. Every world has
one gate, a tool that must be called before the others work (open the store, mount the disk), and one write, which gives a thing
another name: what was read of it before is then out of date.
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
  """An episode: each step of `chain` needs what the one before it returned; the last one returns `answer`.

  Arguments are the names that were drawn, whatever the things are called by now.
  """

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

  State is the seed (which gives all data) and the goal, whether the gate is open, what carries another name by now, the steps
  of the solution that have succeeded (what the agent knows) and the words it has seen quoted.
  """

  specs: ClassVar[dict[str, Spec]]
  distractors: ClassVar[tuple[str, ...]]  # roles few solutions need; one of them is declared from difficulty 2 on
  argument_names: ClassVar[dict[str, tuple[str, ...]]]  # an argument's meaning to the names it may carry
  gate: ClassVar[Gate]
  write: ClassVar[str]  # the role that gives a thing another name, once

  def __init__(self, split: str, difficulty: int) -> None:
    self._split = split
    self._difficulty = difficulty
    self._seed: int | None = None

  @abc.abstractmethod
  def _draw(self, rng: np.random.Generator) -> list[Task]:
    """Draws the episode's data; returns the tasks that could be set in it, the episode's own first."""

  @abc.abstractmethod
  def _look_up(self, role: str, args: tuple[str, ...]) -> Result:
    """What a lookup or the write returns behind the open gate."""

  # The episode

  def reset(self, seed: int, goal: str | None = None) -> tuple[str, base.Info]:
    """Starts the episode that (family, split, difficulty, seed) names; see `Environment.reset`."""
    rng = base.generator(self.family, self._split, self._difficulty, seed)
    self._seed = seed
    self._tasks = self._draw(rng)
    self._task = self._tasks[0]
    self._declare_tools(rng)
    if goal is not None:
      self._set_goal(goal)
    self._ready = False
    self._renamed: dict[str, str] = {}
    self._known: tuple[Step, ...] = ()
    self._seen = tuple(_QUOTED.findall(self._task.goal))
    self._terminated = False
    self._success = False
    return self._task.goal, {"tools": self._tools, "goal": self._task.goal}

  def _set_goal(self, goal: str) -> None:
    if goal not in (goals := self.goals):
      self._seed = None  # no episode was started
      raise EnvironmentFault(f"goal is {goal!r}; in this world of {self.family!r} it could be one of: {'; '.join(goals)}.")
    self._task = next(task for task in self._tasks if task.goal == goal)

  def _declare_tools(self, rng: np.random.Generator) -> None:
    roles = [r for r in self.specs if r not in self.distractors]
    if self._difficulty >= 2:
      needed = [step.role for step in self._task.chain if step.role in self.distractors]
      roles += needed or [self.distractors[int(rng.integers(len(self.distractors)))]]
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
      self._success = action.text == self._task.answer and not self._unwritten()
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
    args = tuple(action.args[name] for name in self._arguments[role])
    step = Step(role, tuple(map(self._drawn, args)))  # before a write changes what the names mean
    result = self._execute(role, args)
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

  def _execute(self, role: str, args: tuple[str, ...]) -> Result:
    gate = self.gate
    if role == gate.enter:
      if self._ready:
        return Result(gate.already, "already")
      self._ready = True
      return Result(gate.entered)
    if not self._ready:
      return Result(gate.missing, "precondition")
    if role == gate.leave:
      self._ready = False
      return Result(gate.left)
    return self._look_up(role, args)

  def _now(self, drawn: str) -> str:
    """What the thing that was drawn under this name is called by now."""
    return self._renamed.get(drawn, drawn)

  def _drawn(self, name: str) -> str:
    """The name under which what is called so by now was drawn; a name that was given up leads nowhere."""
    if name in self._renamed:
      return ""
    return next((drawn for drawn, now in self._renamed.items() if now == name), name)

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

  def _unwritten(self) -> tuple[Step, ...]:
    return tuple(step for step in self._task.chain if step.role == self.write and step not in self._known)

  def _rest(self) -> tuple[Step, ...]:
    """The part of the chain after the last step whose result the agent knows, and before it a write that was passed over."""
    chain = self._task.chain
    known = max((n for n, step in enumerate(chain, 1) if step in self._known), default=0)
    return (*(step for step in self._unwritten() if step in chain[:known]), *chain[known:])

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
    args = dict(zip(self._arguments[step.role], map(self._now, step.args), strict=True))
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
      "goal": self._task.goal,
      "ready": self._ready,
      "renamed": dict(self._renamed),
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
    if state["seed"] != self._seed or state["goal"] != self._task.goal:
      self.reset(state["seed"], state["goal"])
    self._ready = state["ready"]
    self._renamed = dict(state["renamed"])
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
  def goals(self) -> tuple[str, ...]:
    """See `Environment.goals`; those whose tools the episode declares."""
    self._require_reset()
    return tuple(task.goal for task in self._tasks if all(step.role in self._names for step in task.chain))

  @property
  def mentioned(self) -> tuple[str, ...]:
    """See `Environment.mentioned`."""
    self._require_reset()
    return self._seen


def draw_words(rng: np.random.Generator, count: int) -> list[str]:
  """`count` different words: within an episode a word means one thing."""
  return [DATA[i] for i in rng.permutation(len(DATA))[:count].tolist()]


def places(length: int, *, difficulty: int) -> list[tuple[str, int]]:
  """The places of a list that a goal names, word and index: first and last, and from difficulty 2 on the middle ones too."""
  named = min(difficulty, length - 1)
  return [*zip(ORDINALS[:named], range(named), strict=True), ("last", length - 1)]


def own_first(groups: list[list[Task]], rng: np.random.Generator) -> list[Task]:
  """All tasks, the episode's own in front: drawn evenly from the groups, then from its group."""
  group = groups[int(rng.integers(len(groups)))]
  own = group[int(rng.integers(len(group)))]
  return [own, *(task for tasks in groups for task in tasks if task is not own)]


def quoted_list(words: list[str]) -> str:
  """`"a","b"`: no space inside, so that a word has the same neighbours here as in a call's JSON."""
  return ",".join(map(base.quote, words))
