"""Executes actions in a world and writes down what was done and seen; executes again what is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from maxagent.environments import faults
from maxagent.environments.base import Environment, Info, format_answer, format_call, parse_action, tools_text
from maxagent.traces.schema import Segment


class Failure(NamedTuple):
  """A wrong action, the step that it was, and what the environment called its error."""

  action: str
  step: int
  err_kind: str | None


def opening(env: Environment, seed: int) -> list[Segment]:
  """Starts the episode of `seed`; its first words: the tools, the goal and the oracle's plan."""
  goal, info = env.reset(seed)
  plan = env.oracle().plan
  words = [Segment(role="tools", text=tools_text(info["tools"])), Segment(role="goal", text=goal)]
  return words if plan is None else [*words, Segment(role="plan", text=plan)]


class Recorder:
  """Acts in `env` and writes down; `segments`, which tell how the episode came to where it stands, grow with every action."""

  def __init__(self, env: Environment, segments: Sequence[Segment], *, steps: int = 0) -> None:
    self.env = env
    self.segments = [*segments]
    self.history: list[faults.Done] = []
    self.steps = steps
    self.faults = 0
    self.terminated = False
    self.success = False

  def act(self, action: str, *, fault: str | None = None, fixes: int | None = None) -> Failure:
    """Executes and writes down; returns what it was, should it count as a failure.

    A misleading but legal call keeps "ok" on its obs and has "na" itself.
    """
    state = self.env.get_state()
    self.steps += 1
    obs, _, self.terminated, _, info = self.env.step(action)
    self.success = info["success"]
    self.history.append(faults.Done(state, action, obs, info))
    self.faults += fault is not None
    place: dict[str, Any] = {"step": self.steps}
    parsed = parse_action(action)
    if parsed.kind == "answer":
      self.segments.append(Segment(role="answer", text=parsed.text, fixes_step=fixes, **place))
    else:
      place["call_id"] = str(self.steps)
      status = "na" if fault and info["status"] == "ok" else info["status"]
      args = action.split(" ", 2)[2]
      call = Segment(role="call", text=parsed.name, args=args, status=status, err_kind=fault, fixes_step=fixes, **place)
      self.segments += [call, Segment(role="obs", text=obs, status=info["status"], err_kind=info["err_kind"], **place)]
    return Failure(action, self.steps, info["err_kind"])

  def turn_back(self, failure: Failure, following: str, *, fault: str | None, rng: np.random.Generator) -> None:
    """Notices a failure and names the change. The reflection that announces another wrong action is marked err as well."""
    text = faults.reflection(failure.action, following, tools=self.env.tools, err_kind=failure.err_kind, rng=rng)
    status = "err" if fault else "na"
    self.segments.append(Segment(role="back", text="", step=failure.step))
    self.segments.append(Segment(role="reflect", text=text, step=failure.step, status=status, err_kind=fault))


class Played(NamedTuple):
  """An action of a stored trace, executed again."""

  segment: int  # the number of its observation; an answer's own
  action: str
  info: Info
  agrees: bool  # whether the world answered as it stands written
  needed: tuple[int, int]  # actions that the oracle still needs, before and after


def replay(env: Environment, segments: Sequence[Segment]) -> Iterator[Played]:
  """Executes the actions of a trace in `env`, which stands at the episode's start; ends after the first that does not agree.

  An observation after no call is what a world says to a turn without an action.
  """
  action = ""
  for n, segment in enumerate(segments):
    if segment.role == "call":
      action = format_call(segment.text, segment.args or "")
    elif segment.role in ("answer", "obs"):
      action = format_answer(segment.text) if segment.role == "answer" else action
      before = env.remaining()
      if before == 0:  # the episode has ended
        yield Played(n, action, {}, False, (0, 0))
        return
      observation, _, _, _, info = env.step(action)
      said = (observation, info["status"], info["err_kind"])
      agrees = segment.role == "answer" or said == (segment.text, segment.status, segment.err_kind)
      yield Played(n, action, info, agrees, (before, env.remaining()))
      if not agrees:
        return
      action = ""
