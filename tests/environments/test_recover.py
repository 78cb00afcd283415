"""What is made of failed traces was acted out, and is what its goal says."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import pytest

from maxagent.environments import Environment, families, format_answer, format_call, make, parse_action
from maxagent.environments.base import generator, tools_text
from maxagent.environments.generate import failing_episode
from maxagent.environments.recorder import Recorder, opening, replay
from maxagent.environments.recover import Left, hindsight, splice
from maxagent.environments.registry import find
from maxagent.traces.schema import Segment, Trace

WORLDS = [*itertools.product(families(), ("train", "heldout"), (1, 2, 3))]


def _failed(family, split, difficulty, *, episodes=60):
  env = make(family, split=split, difficulty=difficulty)
  for seed in range(episodes):
    yield failing_episode(env, seed, rng=generator("failing", seed))


@pytest.mark.parametrize(("family", "split", "difficulty"), WORLDS)
def test_a_careless_agent_never_turns_back_and_always_fails(family, split, difficulty):
  ends = collections.Counter()
  env = make(family, split=split, difficulty=difficulty)
  for trace in _failed(family, split, difficulty):
    assert (trace.outcome, trace.policy) == ("fail", "careless")
    assert not {"back", "reflect"} & {s.role for s in trace.segments}
    assert all(s.fixes_step is None for s in trace.segments)
    env.reset(trace.env_seed)
    *_, last = replay(env, trace.segments)
    assert last.agrees and not last.info["success"]
    ends[trace.segments[-1].role] += 1
  assert set(ends) == {"answer", "obs"}


def test_a_failing_episode_depends_on_seed_and_generator_alone():
  for family in families():
    one, other = (make(family, split="train", difficulty=2) for _ in range(2))
    for seed in range(20):
      assert failing_episode(one, seed, rng=generator(seed)) == failing_episode(other, seed, rng=generator(seed))


@pytest.mark.parametrize(("family", "split", "difficulty"), WORLDS)
def test_a_splice_keeps_all_up_to_the_first_error_and_then_is_right_to_the_end(family, split, difficulty):
  made = 0
  for trace in _failed(family, split, difficulty):
    errors = [n for n, s in enumerate(trace.segments) if s.role == "obs" and s.status == "err"]
    recovered = splice(trace, generator(0))
    if not errors:
      assert recovered is Left.NO_ERROR
      continue
    made += 1
    first = errors[0]
    assert isinstance(recovered, Trace)
    assert recovered == dataclasses.replace(
      trace, id=f"{trace.id}/splice", policy="careless+splice", outcome="ok", segments=recovered.segments
    )
    kept, (back, reflect, fix, *rest) = recovered.segments[: first + 1], recovered.segments[first + 1 :]
    assert kept == trace.segments[: first + 1]
    assert (back.role, back.text, reflect.role) == ("back", "", "reflect") and reflect.text
    assert fix.fixes_step == kept[-1].step == back.step and (fix.text, fix.args) != (kept[-2].text, kept[-2].args)
    assert all(s.status == "ok" for s in (fix, *rest) if s.role in ("call", "obs"))
    acted = [s for s in (fix, *rest) if s.role in ("call", "answer")]
    assert [s.step for s in acted] == [*range(fix.step, fix.step + len(acted))] and acted[-1].role == "answer"
    env = make(family, split=split, difficulty=difficulty)
    env.reset(trace.env_seed)
    *_, last = played = [*replay(env, recovered.segments)]
    assert all(p.agrees for p in played) and last.info["success"]
  assert made > 30


@pytest.mark.parametrize(("family", "split", "difficulty"), WORLDS)
def test_hindsight_tells_a_trace_with_the_goal_that_it_reached(family, split, difficulty):
  counts = collections.Counter()
  for trace in _failed(family, split, difficulty):
    recovered = hindsight(trace)
    if isinstance(recovered, Left):
      counts[recovered] += 1
      continue
    counts["made"] += 1
    assert (recovered.id, recovered.policy, recovered.outcome) == (f"{trace.id}/hindsight", "careless+hindsight", "ok")
    env = make(family, split=split, difficulty=difficulty)
    own, _ = env.reset(trace.env_seed)
    assert trace.goal == own != recovered.goal
    _, info = env.reset(trace.env_seed, recovered.goal)
    told = [Segment(role="tools", text=tools_text(info["tools"])), Segment(role="goal", text=recovered.goal)]
    assert [*recovered.segments[:3]] == [*told, Segment(role="plan", text=env.oracle().plan)]
    _actions_are_those_of(trace, recovered)
    needed = env.remaining()
    for segment, seen in itertools.pairwise(recovered.segments[3:]):
      if segment.role == "call":
        obs, _, _, _, said = env.step(format_call(segment.text, segment.args))
        assert (obs, said["status"], said["err_kind"]) == (seen.text, seen.status, seen.err_kind)
        right = env.remaining() < needed
        assert segment.status == ("err" if said["status"] == "err" else "ok" if right else "na")
        assert segment.err_kind is None or not right
        needed = env.remaining()
    assert env.remaining() == 1 and env.step(format_answer(recovered.segments[-1].text))[4]["success"]
  assert counts["made"] > 3 or (family, difficulty) == ("files", 1)
  assert set(counts) <= {"made", Left.NO_ANSWER, Left.NOT_REACHED, Left.NO_GOALS}
  assert (Left.NO_GOALS in counts) == ((family, difficulty) == ("files", 1))  # one link, and nothing else to ask for


def _actions_are_those_of(trace: Trace, other: Trace) -> None:
  def acted(t: Trace) -> list[tuple[str | None, ...]]:
    return [(s.role, s.text, s.args) for s in t.segments[3:]]

  assert acted(trace) == acted(other)


def _guess(env: Environment, seed: int) -> Trace:
  """The value of the last key, answered by one who has only opened the store."""
  recorder = Recorder(env, opening(env, seed))
  env.reset(seed, "give the value of the last key")
  while env.remaining() > 1:
    env.step(env.oracle().action)
  answer = env.oracle().action
  goal, _ = env.reset(seed)
  recorder.act(env.oracle().action)
  recorder.act(answer)
  return Trace(
    id="guess", family=env.family, segments=tuple(recorder.segments), tools=env.tools, goal=goal, env_seed=seed, outcome="fail"
  )


def test_a_lucky_guess_reaches_no_goal():
  env = make("kv", split="train")
  seeds = [seed for seed in range(40) if "first key" in env.reset(seed)[0]]
  assert seeds
  for seed in seeds:
    assert hindsight(_guess(env, seed)) is Left.NOT_REACHED


def test_what_cannot_be_acted_in_again_is_left_alone_and_says_why():
  trace = next(t for t in _failed("kv", "train", 1) if t.segments[-1].role == "answer")
  broken = list(trace.segments)
  at = next(n for n, s in enumerate(broken) if s.role == "obs")
  broken[at] = dataclasses.replace(broken[at], text="a thing it never said", status="err")
  for reason, other in (
    (Left.NOT_FAILED, dataclasses.replace(trace, outcome="ok")),
    (Left.NO_WORLD, dataclasses.replace(trace, env_seed=None)),
    (Left.NO_WORLD, dataclasses.replace(trace, env_seed=trace.env_seed + 1)),
    (Left.NO_WORLD, dataclasses.replace(trace, family="chess")),
    (Left.NO_WORLD, dataclasses.replace(trace, goal="win")),
  ):
    assert splice(other, generator(0)) is hindsight(other) is reason
  assert splice(dataclasses.replace(trace, segments=tuple(broken)), generator(0)) is Left.DIFFERS
  assert hindsight(dataclasses.replace(trace, segments=tuple(broken))) is Left.DIFFERS
  unanswered = dataclasses.replace(trace, segments=trace.segments[:-1])
  assert hindsight(unanswered) is Left.NO_ANSWER


def test_a_turn_without_an_action_is_executed_again_as_what_the_world_refused():
  env = make("kv", split="train")
  segments = opening(env, 4)
  obs, _, _, _, info = env.step("")
  said = Segment(role="obs", text=obs, step=1, status=info["status"], err_kind=info["err_kind"])
  trace = Trace(
    id="m", family="kv", tools=env.tools, goal=segments[1].text, env_seed=4, outcome="fail", policy="model",
    segments=(*segments, Segment(role="say", text="hm", status="err", err_kind="malformed"), said),
  )  # fmt: skip
  recovered = splice(trace, generator(0))
  assert isinstance(recovered, Trace) and recovered.policy == "model+splice"
  assert [s.role for s in recovered.segments[3:7]] == ["say", "obs", "back", "reflect"]
  assert recovered.segments[-1].role == "answer"


def test_what_follows_an_answer_does_not_agree():
  env = make("kv", split="train")
  segments = opening(env, 0)
  twice = [*segments, *[Segment(role="answer", text="x")] * 2]
  assert [p.agrees for p in replay(env, twice)] == [True, False]


@pytest.mark.parametrize(("family", "split", "difficulty"), WORLDS)
def test_a_trace_finds_its_world_by_its_tools_and_goal(family, split, difficulty):
  env = make(family, split=split, difficulty=difficulty)
  for seed in range(10):
    env.reset(seed)
    for goal in env.goals:
      env.reset(seed, goal)
      found = find(family, seed, tools=Trace.from_json(_stored(env)).tools, goal=goal)
      assert found is not None and found.get_state() == env.get_state()


def _stored(env: Environment) -> str:
  return Trace(id="x", family=env.family, segments=(Segment(role="goal", text="g"),), tools=env.tools).to_json()


def test_the_last_action_of_a_failing_episode_is_never_the_right_answer():
  for trace in _failed("kv", "train", 2, episodes=200):
    env = make("kv", split="train", difficulty=2)
    env.reset(trace.env_seed)
    while env.remaining() > 1:
      env.step(env.oracle().action)
    last = trace.segments[-1]
    right = parse_action(env.oracle().action).text
    assert last.role != "answer" or last.text != right or trace.goal.startswith("rotate")
