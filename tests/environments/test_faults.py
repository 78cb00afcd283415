"""Wrong actions are really wrong, and say how to recover."""

from __future__ import annotations

import collections
import itertools

import pytest

from maxagent.environments import families, make, parse_action
from maxagent.environments.base import generator
from maxagent.environments.faults import KINDS, reflection, wrong_action, wrong_answer
from maxagent.environments.recorder import Recorder, opening
from maxagent.environments.toolworld.words import DATA
from maxagent.errors import ConfigError
from maxagent.tracking.turns import INJECTED_KINDS

WORLDS = [*itertools.product(families(), ("train", "heldout"), (1, 2, 3))]


@pytest.mark.parametrize(("family", "split", "difficulty"), WORLDS)
def test_a_wrong_action_at_any_step_fails_or_misleads_and_the_oracle_still_solves(family, split, difficulty):
  env = make(family, split=split, difficulty=difficulty)
  for seed in range(60):
    env.reset(seed)
    rng = generator("faults", seed)
    for at in itertools.count():
      env.reset(seed)
      for _ in range(at):
        env.step(env.oracle().action)
      move, before, needed = env.oracle(), env.get_state(), env.remaining()
      found = wrong_action(env, move, rng, history=_history(family, split, difficulty, seed, at))
      assert found is not None
      assert env.get_state() == before
      kind, action = found
      assert kind in KINDS and action != move.action
      obs, _, terminated, _, info = env.step(action)
      assert not terminated and obs
      assert info["status"] == "err" or env.remaining() >= needed
      assert kind in ("stale_state", "repeated_action") or (info["err_kind"] == "precondition") == (
        kind == "missing_precondition"
      )
      while env.remaining():
        success = env.step(env.oracle().action)[4]["success"]
      assert success
      if needed == 1:
        break


def _history(family, split, difficulty, seed, steps):
  """The oracle's first actions in an instance of its own."""
  env = make(family, split=split, difficulty=difficulty)
  recorder = Recorder(env, opening(env, seed))
  for _ in range(steps):
    recorder.act(env.oracle().action)
  return recorder.history


def test_each_kind_of_present_mistake_is_what_it_is_called():
  counts = collections.Counter()
  for family, seed in itertools.product(families(), range(200)):
    env = make(family, split="train", difficulty=2)
    env.reset(seed)
    rng = generator(seed)
    for _ in range(seed % 4):
      env.step(env.oracle().action)
    move = env.oracle()
    right = parse_action(move.action)
    for kind in ("wrong_tool", "wrong_argument", "missing_precondition"):
      found = wrong_action(env, move, rng, (kind,))
      if found:
        wrong = parse_action(found[1])
        counts[kind] += 1
        assert (wrong.name != right.name) == (kind != "wrong_argument")
        assert kind != "missing_precondition" or found[1] == move.early
      impossible = {"wrong_argument": right.kind == "answer", "missing_precondition": move.early is None}
      assert (found is None) == impossible.get(kind, False)
  assert len(counts) == 3


def _executed(env, seed, history):
  """A fresh episode with the actions of the history done: what each gave is the same again."""
  env.reset(seed)
  for done in history:
    assert env.get_state() == done.state
    observation, _, _, _, info = env.step(done.action)
    assert (observation, info) == (done.observation, done.info)


@pytest.mark.parametrize(("family", "split", "difficulty"), WORLDS)
def test_a_repeated_action_was_done_before_and_gives_the_same_again(family, split, difficulty):
  found = 0
  for seed, steps in itertools.product(range(30), range(5)):
    env = make(family, split=split, difficulty=difficulty)
    history = _history(family, split, difficulty, seed, min(steps, 3))
    _executed(env, seed, history)
    repeated = wrong_action(env, env.oracle(), generator(seed), ("repeated_action",), history=history)
    if repeated:
      found += 1
      observation, _, _, _, info = env.step(repeated[1])
      assert (repeated[1], observation, info) in [done[1:] for done in history]
  assert found > 30


@pytest.mark.parametrize(("family", "split", "difficulty"), WORLDS)
def test_a_stale_action_succeeded_in_an_earlier_state_and_fails_now(family, split, difficulty):
  found = collections.Counter()
  env, other = (make(family, split=split, difficulty=difficulty) for _ in range(2))
  for seed, steps in itertools.product(range(30), range(1, 7)):
    env.reset(seed)
    history = _history(family, split, difficulty, seed, min(steps, env.remaining() - 1))
    _executed(env, seed, history)
    stale = wrong_action(env, env.oracle(), generator(seed), ("stale_state",), history=history)
    assert stale is not None  # the gate, at least, is open by now
    assert env.step(stale[1])[4]["status"] == "err"
    then = []
    for n in range(len(history)):
      _executed(other, seed, history[:n])
      then.append(other.step(stale[1])[4]["status"])
    assert "ok" in then
    found[env.step(stale[1])[4]["err_kind"]] += 1
  assert (len(found) > 1) == (difficulty > 1)  # from difficulty 2 on names change under the agent


def test_a_key_that_was_rotated_and_a_file_that_was_archived_are_asked_for_by_the_old_name():
  for family, goal, error in (("kv", "rotate", "no_key"), ("files", "archive", "no_file")):
    env = make(family, split="train", difficulty=2)
    seed = next(seed for seed in range(50) if env.reset(seed)[0].startswith(goal))
    env.reset(seed)
    history = _history(family, "train", 2, seed, env.remaining() - 2)
    _executed(env, seed, history)
    move = env.oracle()
    said = {wrong_action(env, move, generator(n), ("stale_state",), history=history)[1] for n in range(40)}
    old = [action for action in said if parse_action(action).name == parse_action(move.action).name]
    assert old and all(env.step(action)[4]["err_kind"] == error for action in old)


def test_without_a_past_nothing_is_stale_or_repeated():
  env = make("kv", split="train", difficulty=2)
  env.reset(0)
  assert wrong_action(env, env.oracle(), generator(0), ("stale_state", "repeated_action")) is None
  env.step(env.oracle().action)
  assert wrong_action(env, env.oracle(), generator(0), ("stale_state", "repeated_action")) is None


def test_the_kinds_that_look_back_are_drawn_half_as_often():
  env = make("kv", split="train")
  env.reset(1)
  history = _history("kv", "train", 1, 1, 2)
  _executed(env, 1, history)
  move, rng = env.oracle(), generator(0)
  kinds = collections.Counter(wrong_action(env, move, rng, history=history)[0] for _ in range(3000))
  assert set(kinds) == {*KINDS} - {"missing_precondition"}
  for kind, share in (("wrong_tool", 2), ("wrong_argument", 2), ("stale_state", 1), ("repeated_action", 1)):
    assert kinds[kind] / 3000 == pytest.approx(share / 6, abs=0.03)


def test_a_wrong_answer_is_the_word_that_came_last_unless_it_is_right():
  for family, seed in itertools.product(families(), range(30)):
    env = make(family, split="train")
    env.reset(seed)
    while env.remaining() > 1:
      env.step(env.oracle().action)
    right = parse_action(env.oracle().action).text
    before = env.get_state()
    answer = wrong_answer(env, generator(seed))
    assert env.get_state() == before
    assert parse_action(answer).text == [word for word in env.mentioned if word != right][-1]
    assert not env.step(answer)[4]["success"]
  env = make("kv", split="train")
  seed = next(seed for seed in range(20) if "alias" not in env.reset(seed)[0])
  env.reset(seed)
  assert not env.mentioned and parse_action(wrong_answer(env, generator(0))).text in DATA


def test_every_kind_that_is_forced_is_shown_as_such():
  assert frozenset(KINDS) == INJECTED_KINDS


def test_an_answer_is_only_mistaken_for_one_more_call():
  env = make("kv", split="train")
  env.reset(0)
  while env.remaining() > 1:
    env.step(env.oracle().action)
  assert wrong_action(env, env.oracle(), generator(0), ("wrong_argument", "missing_precondition")) is None
  kind, action = wrong_action(env, env.oracle(), generator(0))
  assert kind == "wrong_tool" and action.startswith("call ")


def test_an_action_to_avoid_is_not_proposed_again():
  env = make("files", split="heldout")
  env.reset(5)
  rng = generator(0)
  tried: list[str] = []
  while found := wrong_action(env, env.oracle(), rng, ("wrong_tool",), avoid=tuple(tried)):
    assert found[1] not in tried
    tried.append(found[1])
  assert tried


def test_an_unknown_kind_is_named():
  env = make("kv", split="train")
  env.reset(0)
  with pytest.raises(ConfigError, match=r"typo.*wrong_tool"):
    wrong_action(env, env.oracle(), generator(0), ("typo",))


TOOLS = ({"does": "get value", "name": "run_box", "args": ["key"]}, {"does": "open store", "name": "ask_lane", "args": []})


@pytest.mark.parametrize(
  ("failed", "following", "err_kind", "phrasings"),
  [
    ('call run_box {"key":"a"}', "call ask_lane {}", "precondition", {"open store first", "open store before that"}),
    ("call ask_lane {}", 'call run_box {"key":"a"}', "already", {"get value instead", "get value is needed"}),
    ("call run {}", 'call run_box {"key":"a"}', "no_tool", {'use "run_box"', 'the name is "run_box"'}),
    ('call run_box {"key":"a"}', 'call run_box {"key":"b"}', "no_key", {'use "b", not "a"', 'not "a" but "b"'}),
    ("call run_box {}", 'call run_box {"key":"b"}', "bad_args", {'argument is "key"', 'argument must be "key"'}),
    ('call ask_lane {"key":"b"}', "call ask_lane {}", "bad_args", {"no arguments", "without arguments"}),
    ("call ask_lane {}", "answer a", None, {"answer now", "all is known, answer"}),
    ('call run_box {"key":"a"}', "call ask_lane {}", None, {"open store instead", "open store is needed"}),  # repeated
  ],
)
def test_a_reflection_names_the_change(failed, following, err_kind, phrasings):
  said = {reflection(failed, following, tools=TOOLS, err_kind=err_kind, rng=generator(n)) for n in range(20)}
  assert said == phrasings
