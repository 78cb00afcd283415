"""The loop is proven with a scripted decoder: what the oracle would write, and what a stubborn agent would."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from maxagent import environments
from maxagent.environments.base import Environment
from maxagent.sampling.engine import Turn
from maxagent.sampling.episodes import Task, run_episodes
from maxagent.sampling.turns import segment_ids
from maxagent.tokenizer import Tokenizer
from maxagent.traces.schema import Segment

Write = Callable[[Environment, list[int]], Sequence[int]]


class Script:
  """A decoder whose words come from a function of the world and the context; it keeps the context as an engine would."""

  def __init__(self, write: Write, tasks: Sequence[Task], *, slots: int = 3, length: int = 600) -> None:
    self.slots = slots
    self.contexts: dict[int, list[int]] = {}
    self.finished: list[list[int]] = []
    self._write = write
    self._tasks = tasks
    self._length = length
    self._worlds: dict[int, Environment] = {}
    self._waiting: set[int] = set()

  def reset(self, slot: int, *, seed: int = 0) -> None:
    if slot in self.contexts:
      self.finished.append(self.contexts[slot])
    self.contexts[slot] = []
    self._worlds[slot] = self._tasks[seed].environment

  def room(self, slot: int) -> int:
    return self._length - len(self.contexts[slot])

  def feed(self, slot: int, tokens: Sequence[int]) -> None:
    self.contexts[slot] += tokens
    self._waiting.add(slot)

  def retract(self, slot: int, count: int) -> None:
    del self.contexts[slot][len(self.contexts[slot]) - count :]

  def decode(self) -> dict[int, Turn]:
    turns = {}
    for slot in sorted(self._waiting):
      tokens = tuple(self._write(self._worlds[slot], self.contexts[slot]))[: self.room(slot)]
      self.contexts[slot] += tokens
      full = self.room(slot) == 0
      turns[slot] = Turn(tokens=tokens, log_probs=(0.0,) * len(tokens), closed=not full, full=full)
    self._waiting.clear()
    return turns


def _action_segment(action: str) -> Segment:
  kind, _, rest = action.partition(" ")
  if kind == "answer":
    return Segment(role="answer", text=rest)
  name, _, args = rest.partition(" ")
  return Segment(role="call", text=name, args=args)


def _oracle(tokenizer: Tokenizer) -> Write:
  def write(world: Environment, context: list[int]) -> list[int]:
    move = world.oracle()
    plan = [] if tokenizer.id("call") in context else segment_ids(Segment(role="plan", text=move.plan or ""), tokenizer)
    return plan + segment_ids(_action_segment(move.action), tokenizer)

  return write


def _constant(tokenizer: Tokenizer, action: str) -> Write:
  return lambda world, context: segment_ids(_action_segment(action), tokenizer)


def _tasks(family: str, count: int, *, faulty: bool = False) -> list[Task]:
  return [
    Task(environment=environments.make(family, split="heldout"), seed=seed, fault_seed=seed if faulty else None)
    for seed in range(count)
  ]


@pytest.mark.parametrize("family", environments.families())
def test_the_oracle_succeeds_in_every_clean_episode(tokenizer: Tokenizer, family: str):
  tasks = _tasks(family, 20)
  results = run_episodes(Script(_oracle(tokenizer), tasks), tasks, tokenizer=tokenizer, turn_limit=12)
  assert all(r.success and r.ended == "answered" and r.kind == "clean" and r.trace.outcome == "ok" for r in results)
  assert [r.trace.env_seed for r in results] == list(range(20))
  assert all(r.invalid_calls == r.failed_actions == r.repeated_errors == 0 and r.fault is None for r in results)
  assert all(r.turns == r.actions == sum(s.role in ("call", "answer") for s in r.trace.segments) for r in results)


@pytest.mark.parametrize("family", environments.families())
def test_a_forced_fault_is_really_executed_and_the_oracle_recovers(tokenizer: Tokenizer, family: str):
  tasks = _tasks(family, 30, faulty=True)
  results = run_episodes(Script(_oracle(tokenizer), tasks), tasks, tokenizer=tokenizer, turn_limit=12)
  assert all(r.success and r.kind == "recovery" for r in results)
  for result in results:
    assert result.fault is not None and result.failed_actions == 1 and result.repeated_errors == 0
    world = environments.make(family, split="heldout")
    world.reset(result.trace.env_seed or 0)
    for place, segment in enumerate(result.trace.segments):
      if segment.role != "call":
        continue
      text, _, _, _, info = world.step(f"call {segment.text} {segment.args}")
      observation = result.trace.segments[place + 1]
      assert (observation.role, observation.text, observation.status) == ("obs", text, info["status"])
      if segment.step == result.fault.step:
        assert f"call {segment.text} {segment.args}" == result.fault.action
        assert segment.status == ("err" if info["status"] == "err" else "na") and segment.err_kind == result.fault.kind
  assert {r.fault.step for r in results if r.fault} == {1, 2, 3}
  assert len({r.fault.kind for r in results if r.fault}) == 3


def test_a_forced_fault_stands_in_the_place_of_the_models_action_and_its_plan_stays(tokenizer: Tokenizer):
  tasks = _tasks("kv", 12, faulty=True)
  script = Script(_oracle(tokenizer), tasks, slots=12)
  results = run_episodes(script, tasks, tokenizer=tokenizer, turn_limit=12)
  first = [(n, r) for n, r in enumerate(results) if r.fault and r.fault.step == 1]
  assert first
  for number, result in first:
    assert [s.role for s in result.trace.segments[:5]] == ["tools", "goal", "plan", "call", "obs"]
    # What the decoder holds is the trace, token by token: no trace is left of the action that was taken back.
    context = script.contexts[script.slots - 1 - number]
    shown = [token for s in result.trace.segments for token in segment_ids(s, tokenizer)]
    assert context == [tokenizer.bos_id, *shown]


def test_an_agent_that_repeats_its_error_is_counted_and_runs_into_the_turn_limit(tokenizer: Tokenizer):
  tasks = _tasks("kv", 4)
  script = Script(_constant(tokenizer, 'call no_such {"a":"b"}'), tasks)
  results = run_episodes(script, tasks, tokenizer=tokenizer, turn_limit=5)
  for result in results:
    assert (result.success, result.ended, result.turns, result.actions) == (False, "turn_limit", 5, 5)
    assert (result.failed_actions, result.repeated_errors, result.invalid_calls) == (4, 4, 5)
    assert result.trace.outcome == "fail"


def test_an_episode_that_outgrows_its_slot_fails_and_says_so(tokenizer: Tokenizer):
  tasks = _tasks("kv", 2)
  short = Script(_oracle(tokenizer), tasks, length=20)
  assert {r.ended for r in run_episodes(short, tasks, tokenizer=tokenizer, turn_limit=12)} == {"context_full"}
  rambling = Script(lambda world, context: tokenizer.encode("word " * 500), tasks, length=400)
  results = run_episodes(rambling, tasks, tokenizer=tokenizer, turn_limit=12)
  assert all(r.ended == "context_full" and not r.success for r in results)
  assert all(r.trace.segments[-1].err_kind == "malformed" for r in results)


def test_a_turn_without_an_action_is_refused_by_the_world_and_counted_invalid(tokenizer: Tokenizer):
  tasks = _tasks("files", 1)
  script = Script(lambda world, context: [tokenizer.id("think"), *tokenizer.encode("hm")], tasks)
  (result,) = run_episodes(script, tasks, tokenizer=tokenizer, turn_limit=3)
  assert result.invalid_calls == 3 and result.repeated_errors == 2
  observations = [s for s in result.trace.segments if s.role == "obs"]
  assert [s.status for s in observations] == ["err"] * 3
  shown = [s.role for s in result.trace.segments[2:]]
  assert shown == ["think", "obs"] * 3
  # The harness closed the segment that the model left open.
  context = script.contexts[2]
  assert context.count(tokenizer.end_id) >= 2 + 2 + 2


def test_the_same_call_in_other_json_spelling_is_a_repeated_error(tokenizer: Tokenizer):
  tasks = _tasks("kv", 1)
  spellings = iter(['call x {"a":"b"}', 'call x {"a": "b"}', 'call x { "a":"c"}'])
  script = Script(lambda world, context: segment_ids(_action_segment(next(spellings)), tokenizer), tasks)
  (result,) = run_episodes(script, tasks, tokenizer=tokenizer, turn_limit=3)
  assert (result.failed_actions, result.repeated_errors) == (2, 1)


def test_an_answer_before_the_step_of_the_fault_leaves_the_fault_out(tokenizer: Tokenizer):
  tasks = _tasks("kv", 12, faulty=True)
  results = run_episodes(Script(_constant(tokenizer, "answer x"), tasks), tasks, tokenizer=tokenizer, turn_limit=12)
  missed = [r for r in results if r.fault is None]
  assert missed and all(r.turns == 1 for r in missed)
  assert any(r.fault is not None and r.fault.step == 1 for r in results)


def test_segments_are_shown_as_they_happen(tokenizer: Tokenizer):
  tasks = _tasks("kv", 2)
  seen: dict[int, list[Segment]] = {0: [], 1: []}
  results = run_episodes(
    Script(_oracle(tokenizer), tasks),
    tasks,
    tokenizer=tokenizer,
    turn_limit=12,
    watch=lambda n, segment: seen[n].append(segment),
  )
  assert [tuple(seen[n]) for n in (0, 1)] == [r.trace.segments for r in results]


def test_a_record_holds_what_the_report_needs(tokenizer: Tokenizer):
  tasks = _tasks("kv", 1, faulty=True)
  (result,) = run_episodes(Script(_oracle(tokenizer), tasks), tasks, tokenizer=tokenizer, turn_limit=12)
  record = result.record(40)
  assert (record["kind"], record["success"], record["step"]) == ("recovery", True, 40)
  assert record["trace"]["segments"][0]["role"] == "tools"
