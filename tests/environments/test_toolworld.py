"""The toolworld families: exact, solvable from anywhere, strict about their protocol."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxagent.environments import Environment, args_text, families, format_answer, format_call, make, parse_action
from maxagent.errors import ConfigError, EnvironmentFault

WORLDS = [*itertools.product(families(), ("train", "heldout"), (1, 2, 3))]


def _fresh(family: str, split: str, difficulty: int, *, seed: int) -> Environment:
  env = make(family, split=split, difficulty=difficulty)
  env.reset(seed)
  return env


def _solve(env: Environment) -> tuple[int, bool]:
  """Plays the oracle to the end: (actions, success)."""
  for actions in itertools.count(1):
    _, reward, terminated, truncated, info = env.step(env.oracle().action)
    assert not truncated
    assert info["status"] == ("na" if terminated else "ok")
    if terminated:
      assert reward == float(info["success"])
      return actions, info["success"]
  raise AssertionError


def _random_action(env: Environment, rng: np.random.Generator) -> str:
  """A declared tool, its own arguments or another's, a word seen or made up."""
  tool = env.tools[rng.integers(len(env.tools))]
  words = [*env.mentioned, "nowhere"]
  args = {a: words[rng.integers(len(words))] for a in tool["args"]}
  for a, value in args.items():
    if rng.random() < 0.3:
      args[a] = f"{value}/{words[rng.integers(len(words))]}"
  return format_call(tool["name"], args_text(args))


@pytest.mark.parametrize(("family", "split", "difficulty"), WORLDS)
def test_the_oracle_solves_every_episode_in_as_many_actions_as_it_said_remain(family, split, difficulty):
  env = make(family, split=split, difficulty=difficulty)
  for seed in range(300):
    env.reset(seed)
    needed = env.remaining()
    assert _solve(env) == (needed, True)
    assert env.remaining() == 0


@pytest.mark.parametrize(("family", "split", "difficulty"), WORLDS)
def test_the_oracle_solves_from_any_state_that_random_actions_reach(family, split, difficulty):
  env = make(family, split=split, difficulty=difficulty)
  rng = np.random.default_rng(difficulty)
  for seed in range(150):
    env.reset(seed)
    for _ in range(rng.integers(12)):
      env.step(_random_action(env, rng))
    needed = env.remaining()
    assert _solve(env) == (needed, True)


@pytest.mark.parametrize(("family", "split", "difficulty"), WORLDS)
def test_the_verifier_rejects_every_answer_but_the_right_one(family, split, difficulty):
  env = make(family, split=split, difficulty=difficulty)
  for seed in range(60):
    env.reset(seed)
    while env.remaining() > 1:
      env.step(env.oracle().action)
    state, right = env.get_state(), parse_action(env.oracle().action).text
    wrong = [w for w in env.mentioned if w != right]
    for answer in [*wrong, "", right.upper(), f'"{right}"', right + right, f"{right} {right}"]:
      env.set_state(state)
      _, reward, terminated, _, info = env.step(format_answer(answer))
      assert (reward, terminated, info["success"]) == (0.0, True, False)
    env.set_state(state)
    assert env.step(format_answer(right))[1] == 1.0


def test_an_episode_at_difficulty_one_takes_three_calls_of_which_the_last_needs_what_the_second_returned():
  for family in families():
    for seed in range(100):
      env = _fresh(family, "train", 1, seed=seed)
      assert env.remaining() == 4
      env.step(env.oracle().action)
      seen = set(env.mentioned)
      env.step(env.oracle().action)
      (value,) = parse_action(env.oracle().action).args.values()
      assert value.rpartition("/")[2] in set(env.mentioned) - seen or value in set(env.mentioned) - seen


def test_nothing_but_the_gate_works_before_the_gate_and_errors_change_no_state():
  for family, split, difficulty in WORLDS:
    env = _fresh(family, split, difficulty, seed=3)
    move = env.oracle()
    before = env.get_state()
    for tool in env.tools:
      call = format_call(tool["name"], args_text(dict.fromkeys(tool["args"], "oak")))
      if call != move.action:
        assert env.step(call)[4]["err_kind"] == "precondition"
    assert env.get_state() == before
    assert env.step(move.action)[4]["status"] == "ok"
    assert env.step(move.action)[4]["err_kind"] == "already"
    assert env.step(move.early)[4]["status"] == "ok"


def test_leaving_the_gate_by_the_distractor_makes_the_oracle_enter_again():
  for family, does in (("kv", "close store"), ("files", "unmount disk")):
    envs = [_fresh(family, "train", 2, seed=seed) for seed in range(20)]
    env = next(e for e in envs if any(t["does"] == does for t in e.tools))
    enter = env.oracle().action
    env.step(enter)
    env.step(format_call(next(t["name"] for t in env.tools if t["does"] == does), "{}"))
    assert env.oracle().action == enter
    assert _solve(env)[1]


@pytest.mark.parametrize(
  ("action", "observation", "err_kind"),
  [
    ("", "an action is a call or an answer", "malformed"),
    ("call", "an action is a call or an answer", "malformed"),
    ("call x", "arguments must be a JSON object", "bad_json"),
    ("call x {", "arguments must be a JSON object", "bad_json"),
    ("call x []", "arguments must be a JSON object", "bad_json"),
    ("call x " + "[" * 100_000, "arguments must be a JSON object", "bad_json"),
    ("call x_y {}", 'no tool "x_y"', "no_tool"),
    ("call GET {}", 'needs "KEY"', "bad_args"),
    ('call GET {"KEY":3}', 'needs "KEY"', "bad_args"),
    ('call GET {"KEY":"a","b":"c"}', 'no argument "b"', "bad_args"),
    ('call LIST {"b":"c"}', "takes no arguments", "bad_args"),
    ('call GET {"KEY":"nowhere"}', 'no key "nowhere"', "no_key"),
    ('call RESOLVE {"ALIAS":"nowhere"}', 'no alias "nowhere"', "no_alias"),
    ('call GET {"KEY":"\\ud800\\n"}', 'no key "?\\n"', "no_key"),
    ('call GET {"KEY":"' + "a" * 500 + '"}', 'no key "' + "a" * 40 + '..."', "no_key"),
  ],
)
def test_an_error_says_what_to_change(action, observation, err_kind):
  env = _fresh("kv", "train", 1, seed=0)
  env.step(env.oracle().action)
  tools = {t["does"]: t for t in env.tools}
  action = action.replace("KEY", tools["get value"]["args"][0]).replace("ALIAS", tools["resolve alias"]["args"][0])
  for placeholder, does in (("GET", "get value"), ("LIST", "list keys"), ("RESOLVE", "resolve alias")):
    action = action.replace(placeholder, tools[does]["name"])
  obs, reward, terminated, truncated, info = env.step(action)
  assert obs == observation.replace("KEY", tools["get value"]["args"][0])
  assert (reward, terminated, truncated) == (0.0, False, False)
  assert info == {"status": "err", "err_kind": err_kind, "success": False}


_JSON = st.recursive(
  st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@st.composite
def _action_texts(draw: st.DrawFn, env: Environment) -> str:
  tool = draw(st.sampled_from(env.tools))
  name = draw(st.sampled_from([tool["name"], "call", ""]) | st.text())
  words = st.sampled_from([*env.mentioned, "oak"]) | st.text(st.characters())  # lone surrogates included
  args = draw(st.fixed_dictionaries({a: words for a in tool["args"]}) | st.dictionaries(st.text(), _JSON) | _JSON)
  return draw(st.sampled_from([format_call(name, json.dumps(args)), name, draw(st.text())]))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), world=st.sampled_from(WORLDS), seed=st.integers(-(2**70), 2**70))
def test_no_text_makes_step_raise_and_the_episode_stays_solvable(data, world, seed):
  env = _fresh(*world, seed=seed)
  for _ in range(4):
    action = data.draw(_action_texts(env))
    if not action.strip().startswith("answer"):
      obs, _, terminated, _, _ = env.step(action)
      assert not terminated
      obs.encode("utf-8")  # a lone surrogate would raise here, and in any tokenizer
      assert json.loads(json.dumps(env.get_state())) == env.get_state()
  assert _solve(env)[1]


@pytest.mark.parametrize(("family", "split", "difficulty"), WORLDS)
def test_a_state_saved_as_json_continues_identically_in_another_instance(family, split, difficulty):
  rng = np.random.default_rng(0)
  for seed in range(40):
    env = _fresh(family, split, difficulty, seed=seed)
    for _ in range(rng.integers(6)):
      env.step(_random_action(env, rng))
    state = env.get_state()
    copy = make(family, split=split, difficulty=difficulty)
    copy.set_state(json.loads(json.dumps(state)))
    assert copy.get_state() == state
    while env.remaining():
      action = env.oracle().action if rng.random() < 0.6 else _random_action(env, rng)
      assert env.step(action) == copy.step(action)
      assert env.get_state() == copy.get_state()
    env.set_state(state)
    assert _solve(env)[1]


def test_a_state_of_another_world_is_refused():
  env = _fresh("kv", "train", 1, seed=0)
  with pytest.raises(EnvironmentFault, match="heldout"):
    make("kv", split="heldout").set_state(env.get_state())


def test_use_before_reset_or_after_the_answer_is_a_fault_of_the_caller():
  env = make("kv", split="train")
  for use in (lambda: env.step("answer x"), env.oracle, env.remaining, env.get_state, lambda: env.tools, lambda: env.mentioned):
    with pytest.raises(EnvironmentFault, match="reset"):
      use()
  env.reset(0)
  env.step("answer x")
  for use in (lambda: env.step("answer x"), env.oracle):
    with pytest.raises(EnvironmentFault, match="reset"):
      use()
  env.reset(0)
  assert _solve(env)[1]


def test_an_unknown_family_split_or_difficulty_is_named_with_what_exists():
  with pytest.raises(ConfigError, match=r"'chess'.*files, kv"):
    make("chess", split="train")
  with pytest.raises(ConfigError, match="train, heldout"):
    make("kv", split="test")
  with pytest.raises(ConfigError, match="1, 2, 3"):
    make("kv", split="train", difficulty=4)


def test_one_seed_gives_one_episode_and_the_splits_give_different_ones():
  for family in families():
    texts = {split: set() for split in ("train", "heldout")}
    for split, seen in texts.items():
      for seed in range(200):
        first, second = (make(family, split=split).reset(seed) for _ in range(2))
        assert first == second
        seen.add(json.dumps(first[1]["tools"]) + first[0])
      assert len(seen) == 200
    assert not texts["train"] & texts["heldout"]


def test_schemas_change_order_names_and_argument_names_and_carry_one_distractor_from_difficulty_two():
  for family, tools in (("kv", 4), ("files", 3)):
    orders, arguments = set(), set()
    for seed in range(200):
      easy, hard = _fresh(family, "train", 1, seed=seed), _fresh(family, "train", 2, seed=seed)
      assert (len(easy.tools), len(hard.tools)) == (tools, tools + 1)
      orders.add(tuple(t["does"] for t in easy.tools))
      arguments |= {a for t in easy.tools for a in t["args"]}
    assert len(orders) == {3: 6, 4: 24}[tools]
    assert len(arguments) == 6


def _roles(env: Environment) -> dict[str, dict[str, object]]:
  return {tool["does"]: tool for tool in env.tools}


def _episode_of(family: str, start: str, difficulty: int) -> Environment:
  """An episode whose goal starts so, behind the gate."""
  env = make(family, split="train", difficulty=difficulty)
  seed = next(seed for seed in range(99) if env.reset(seed)[0].startswith(start))
  env.reset(seed)
  env.step(env.oracle().action)
  return env


@pytest.mark.parametrize("difficulty", [2, 3])
@pytest.mark.parametrize(
  ("family", "write", "read", "gone", "again"),
  [
    ("kv", "rotate key", "get value", "no key", "already rotated"),
    ("files", "archive file", "read file", "no file", "already archived"),
  ],
)
def test_a_write_gives_a_thing_another_name_under_which_alone_it_is_found(family, write, read, gone, again, difficulty):
  env = _episode_of(family, write.partition(" ")[0], difficulty)
  tools = _roles(env)

  def call(does: str, name: str) -> tuple[str, str | None]:
    obs, _, _, _, info = env.step(format_call(tools[does]["name"], args_text({tools[does]["args"][0]: name})))
    return obs, info["err_kind"]

  while parse_action(env.oracle().action).name != tools[write]["name"]:
    env.step(env.oracle().action)
  (old,) = parse_action(env.oracle().action).args.values()
  before, _ = call(read, old)
  told, _ = call(write, old)
  (new,) = parse_action(f"call x {args_text({'x': told.split(chr(34))[1]})}").args.values()
  assert new != old and call(read, new) == (before, None)
  for does in (write, read):
    assert call(does, old) == (f'{gone} "{old}"', gone.replace(" ", "_"))
  assert call(write, new) == (f'{gone.partition(" ")[2]} "{new}" {again}', "already")
  assert env.remaining() == 1 and _solve(env)[1]


def test_lists_aliases_and_links_tell_the_new_name():
  for difficulty in (2, 3):
    kv = _episode_of("kv", "rotate", difficulty)
    files = _episode_of("files", "archive", difficulty)
    for env, does, listing in ((kv, "rotate key", "list keys"), (files, "archive file", "list folder")):
      tools = _roles(env)
      acted: list[str] = []
      while parse_action(env.oracle().action).name != tools[does]["name"]:
        acted.append(env.oracle().action)
        env.step(acted[-1])
      (old,) = parse_action(env.oracle().action).args.values()
      obs = env.step(env.oracle().action)[0]
      new = obs.split('"')[1]
      listed = env.step(acted[-1])[0]
      assert parse_action(acted[-1]).name == tools[listing]["name"]
      assert f'"{old.rpartition("/")[2]}"' not in listed
      assert (f'"{new}"' in listed) == (env is kv)  # the archive is another folder
      if env is files:
        folder, _, name = new.rpartition("/")
        listing_call = format_call(tools[listing]["name"], args_text({tools[listing]["args"][0]: folder}))
        assert env.step(listing_call)[0] == f'files "{name}"'


def test_an_answer_without_the_write_that_was_asked_for_is_refused_and_the_oracle_still_makes_it():
  for family, write, read in (("kv", "rotate", "get value"), ("files", "archive", "read file")):
    env = _episode_of(family, write, 2)
    tools = _roles(env)
    while parse_action(env.oracle().action).name != next(t["name"] for d, t in tools.items() if d.startswith(write)):
      env.step(env.oracle().action)
    (name,) = parse_action(env.oracle().action).args.values()
    needed = env.remaining()
    obs = env.step(format_call(tools[read]["name"], args_text({tools[read]["args"][0]: name})))[0]
    assert env.remaining() == needed - 1  # the text is known; the write and the answer are left
    state = env.get_state()
    assert not env.step(format_answer(obs.split('"')[1]))[4]["success"]
    env.set_state(state)
    assert _solve(env) == (2, True)


def test_another_goal_of_the_same_world_changes_what_is_asked_and_nothing_that_is_seen():
  rng = np.random.default_rng(0)
  for family, split, difficulty in WORLDS:
    own, other = (make(family, split=split, difficulty=difficulty) for _ in range(2))
    for seed in range(20):
      goal, info = own.reset(seed)
      assert goal in own.goals and len(set(own.goals)) == len(own.goals)
      for another in own.goals:
        assert other.reset(seed, another) == (another, {"tools": info["tools"], "goal": another})
        own.reset(seed)
        for _ in range(6):
          action = other.oracle().action if rng.random() < 0.7 else _random_action(other, rng)
          if not action.startswith("answer"):
            assert own.step(action) == other.step(action)
        copy = make(family, split=split, difficulty=difficulty)
        copy.set_state(json.loads(json.dumps(other.get_state())))
        assert _solve(copy) == _solve(other)
        assert other.get_state()["success"]


def test_a_goal_that_the_world_does_not_have_is_refused_with_those_that_it_has():
  env = make("kv", split="train")
  env.reset(0)
  with pytest.raises(EnvironmentFault, match="give the value of the first key"):
    env.reset(0, "win at chess")
  with pytest.raises(EnvironmentFault, match="before reset"):
    env.oracle()
