"""What can be learnt from a failed trace by acting again in its world: a correct end, or the goal that it did reach."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np

from maxagent.environments import registry
from maxagent.environments.base import Environment
from maxagent.environments.recorder import Failure, Played, Recorder, replay
from maxagent.traces.schema import Outcome, Segment, Trace


class Left(enum.StrEnum):
  """Why a trace is left alone."""

  NOT_FAILED = "not_failed"
  NO_WORLD = "no_world"  # no seed, or no registered environment begins like the trace
  DIFFERS = "differs"  # the environment, acted in again, answers otherwise than the trace says
  NO_ERROR = "no_error"  # the environment never said err
  NO_ANSWER = "no_answer"
  NO_GOALS = "no_goals"  # the family knows no goal but the episode's own
  NOT_REACHED = "not_reached"  # no other goal of the world was reached


def splice(trace: Trace, rng: np.random.Generator) -> Trace | Left:
  """A failed trace up to its first detectable error, then `back`, `reflect` and the oracle's actions to the end.

  Detectable is what the environment calls an error. All is executed: what stands before the error again, and it must give the
  same.
  """
  env = _world(trace)
  if isinstance(env, Left):
    return env
  error = next((n for n, s in enumerate(trace.segments) if s.role == "obs" and s.status == "err"), None)
  if error is None:
    return Left.NO_ERROR
  kept = trace.segments[: error + 1]
  *_, last = played = [*replay(env, kept)]
  if not last.agrees:
    return Left.DIFFERS
  recorder = Recorder(env, kept, steps=len(played))
  move = env.oracle()
  recorder.turn_back(Failure(last.action, recorder.steps, last.info["err_kind"]), move.action, fault=None, rng=rng)
  recorder.act(move.action, fixes=recorder.steps)
  while not recorder.terminated:
    recorder.act(env.oracle().action)
  assert recorder.success, "the oracle solves every episode"
  return _recovered(trace, "splice", recorder.segments)


def hindsight(trace: Trace) -> Trace | Left:
  """A failed trace with the goal that it did reach, if that is one its world could have set.

  The environment's own verifier must accept the answer under that goal, and its oracle must have had nothing left to do but
  answer: a lucky guess reaches nothing. The plan becomes that goal's, and of a legal call it is told anew whether it helped.
  """
  env = _world(trace)
  if isinstance(env, Left):
    return env
  if trace.segments[-1].role != "answer":
    return Left.NO_ANSWER
  others = [goal for goal in env.goals if goal != trace.goal]
  assert trace.env_seed is not None
  for goal in others:
    env.reset(trace.env_seed, goal)
    plan = env.oracle().plan
    *_, last = played = [*replay(env, trace.segments)]
    if not last.agrees:
      return Left.DIFFERS
    if last.info["success"] and last.needed[0] == 1:
      return _recovered(trace, "hindsight", _relabelled(trace.segments, goal, plan, played), goal=goal)
  return Left.NOT_REACHED if others else Left.NO_GOALS


def _world(trace: Trace) -> Environment | Left:
  """The failed trace's environment at the start of its episode."""
  if trace.outcome != Outcome.FAIL:
    return Left.NOT_FAILED
  return registry.find(trace.family, trace.env_seed, tools=trace.tools, goal=trace.goal) or Left.NO_WORLD


def _recovered(trace: Trace, how: str, segments: Sequence[Segment], *, goal: str | None = None) -> Trace:
  return dataclasses.replace(
    trace,
    id=f"{trace.id}/{how}",
    segments=tuple(segments),
    goal=trace.goal if goal is None else goal,
    outcome=Outcome.OK.value,
    policy=f"{trace.policy}+{how}",
  )


def _relabelled(segments: Sequence[Segment], goal: str, plan: str | None, played: Sequence[Played]) -> list[Segment]:
  nearer = {p.segment: p.needed[1] < p.needed[0] for p in played}
  relabelled: list[Segment] = []
  for n, segment in enumerate(segments):
    if segment.role == "goal":
      relabelled.append(dataclasses.replace(segment, text=goal))
    elif segment.role == "plan":
      relabelled += [] if plan is None else [dataclasses.replace(segment, text=plan)]
    elif segment.role == "call" and segment.status != "err":
      right = nearer.get(n + 1, False)  # its observation follows
      status, err_kind = ("ok", None) if right else ("na", segment.err_kind)
      relabelled.append(dataclasses.replace(segment, status=status, err_kind=err_kind))
    else:
      relabelled.append(segment)
  return relabelled
