"""Wrong actions are really wrong, and say how to recover."""

from __future__ import annotations

import collections
import itertools

import pytest

from maxagent.environments import families, make, parse_action
from maxagent.environments.base import generator
from maxagent.environments.faults import KINDS, reflection, wrong_action
from maxagent.errors import ConfigError

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
      found = wrong_action(env, move, rng)
      assert found is not None
      assert env.get_state() == before
      kind, action = found
      assert kind in KINDS and action != move.action
      obs, _, terminated, _, info = env.step(action)
      assert not terminated and obs
      assert info["status"] == "err" or env.remaining() >= needed
      assert (info["err_kind"] == "precondition") == (kind == "missing_precondition")
      while env.remaining():
        success = env.step(env.oracle().action)[4]["success"]
      assert success
      if needed == 1:
        break


def test_each_kind_is_what_it_is_called():
  counts = collections.Counter()
  for family, seed in itertools.product(families(), range(200)):
    env = make(family, split="train", difficulty=2)
    env.reset(seed)
    rng = generator(seed)
    for _ in range(seed % 4):
      env.step(env.oracle().action)
    move = env.oracle()
    right = parse_action(move.action)
    for kind in KINDS:
      found = wrong_action(env, move, rng, (kind,))
      if found:
        wrong = parse_action(found[1])
        counts[kind] += 1
        assert (wrong.name != right.name) == (kind != "wrong_argument")
        assert kind != "missing_precondition" or found[1] == move.early
      impossible = {"wrong_argument": right.kind == "answer", "missing_precondition": move.early is None}
      assert (found is None) == impossible.get(kind, False)
  assert set(counts) == set(KINDS)


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
  ],
)
def test_a_reflection_names_the_change(failed, following, err_kind, phrasings):
  said = {reflection(failed, following, tools=TOOLS, err_kind=err_kind, rng=generator(n)) for n in range(20)}
  assert said == phrasings
