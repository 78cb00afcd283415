"""Traces by acting: the oracle solves episodes, at times after really doing something wrong; a careless agent fails them."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xxhash
from array_record.python.array_record_module import ArrayRecordWriter

from maxagent.environments import faults, registry
from maxagent.environments.base import Environment, generator, parse_action, stable_seed
from maxagent.environments.recorder import Failure, Recorder, opening, replay
from maxagent.environments.recover import Left, hindsight, splice
from maxagent.errors import ConfigError, DataError
from maxagent.traces.schema import Outcome, Segment, Trace

FORMAT_VERSION = 1
SHARD_NAME = "episodes-00000.array_record"
MAX_FAULTS_IN_A_ROW = 2
MAX_FAULTS = 6  # per episode, so that a high rate cannot make a trace outgrow every context
CARELESS = "careless"  # the policy of `failing_episode`
_CARELESSNESS = 0.5  # the chance that its next action is wrong
COUNTED = ("family", "policy", "outcome", "fault", "err_kind", "recovered")  # by the index, over all records
_PROGRESS_EVERY = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistakes:
  """How often the agents err whose episodes are written.

  Raises:
    ConfigError: a share out of range.
  """

  fault_rate: float = 0.15  # chance of a wrong action before each right one
  failing: float = 0.0  # share of the episodes that are failed, each with what can be recovered of it

  def __post_init__(self) -> None:
    for name, what in (
      ("fault_rate", "the chance of a wrong action before each right one"),
      ("failing", "a share of episodes"),
    ):
      value = getattr(self, name)
      if not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value}; expected 0 to 1, {what}.")


def generate_episode(
  env: Environment,
  seed: int,
  *,
  fault_rate: float,
  rng: np.random.Generator,
  kinds: tuple[str, ...] = faults.KINDS,
  trace_id: str | None = None,
) -> Trace:
  """Solves the episode of `seed` by the oracle; before each right action, at `fault_rate`, executes a wrong one.

  After a wrong action follow `back`, `reflect` and, at the same rate again (geometric, at most `MAX_FAULTS_IN_A_ROW`), another
  wrong one; then the right action, whose `fixes_step` is the last failed step.
  """
  recorder = Recorder(env, opening(env, seed))
  failures: list[Failure] = []  # since the last right action
  while not recorder.terminated:
    move = env.oracle()
    wrong = None
    if len(failures) < MAX_FAULTS_IN_A_ROW and recorder.faults < MAX_FAULTS and rng.random() < fault_rate:
      avoid = tuple(failure.action for failure in failures)
      wrong = faults.wrong_action(env, move, rng, kinds, avoid=avoid, history=recorder.history)
    fault, action = wrong or (None, move.action)
    if failures:
      recorder.turn_back(failures[-1], action, fault=fault, rng=rng)
    fixes = failures[-1].step if failures and fault is None else None
    done = recorder.act(action, fault=fault, fixes=fixes)
    failures = [*failures, done] if fault else []
  return _trace(recorder, seed, trace_id, policy="oracle+faults" if recorder.faults else "oracle")


def failing_episode(
  env: Environment,
  seed: int,
  *,
  rng: np.random.Generator,
  kinds: tuple[str, ...] = faults.KINDS,
  trace_id: str | None = None,
) -> Trace:
  """The episode of `seed`, failed by an agent that errs half the time, does not notice, and never turns back.

  It fails in three ways, at even odds: with a wrong answer, with no answer in up to twice the actions that the oracle needs, or
  with the answer to another goal of its world that speaks of nothing else. Where there is none, the answer is a wrong one.
  """
  words = opening(env, seed)
  way = int(rng.integers(3))
  recorder = _misled(env, seed, words, rng, kinds) if way == 2 else None
  if recorder is None:
    env.reset(seed)
    recorder = Recorder(env, words)
    needed = env.remaining()
    for _ in range(needed + int(rng.integers(needed)) - (way > 0)):
      fault, action = _careless(recorder, rng, kinds)
      if parse_action(action).kind == "answer":
        break
      recorder.act(action, fault=fault)
    if way > 0:
      recorder.act(faults.wrong_answer(env, rng))
  return dataclasses.replace(_trace(recorder, seed, trace_id, policy=CARELESS), outcome=Outcome.FAIL.value)


def _misled(
  env: Environment, seed: int, words: Sequence[Segment], rng: np.random.Generator, kinds: tuple[str, ...]
) -> Recorder | None:
  """The episode acted to the end of a goal that is not its own, if its own verifier refuses the answer."""
  known, goals = set(env.mentioned), env.goals
  for goal in rng.permutation([goal for goal in goals if goal != words[1].text]).tolist():
    env.reset(seed, goal)
    if not known.issuperset(env.mentioned):
      continue
    recorder = Recorder(env, words)
    while not recorder.terminated:
      fault, action = _careless(recorder, rng, kinds) if recorder.faults < MAX_FAULTS else (None, env.oracle().action)
      recorder.act(action, fault=fault)
    env.reset(seed)
    *_, last = replay(env, recorder.segments)
    if not last.info["success"]:
      return recorder
  return None


def _careless(recorder: Recorder, rng: np.random.Generator, kinds: tuple[str, ...]) -> tuple[str | None, str]:
  """The next action, and the kind of fault that it is: half the time a wrong one, if the state allows any."""
  move = recorder.env.oracle()
  wrong = None
  if rng.random() < _CARELESSNESS:
    wrong = faults.wrong_action(recorder.env, move, rng, kinds, history=recorder.history)
  return wrong or (None, move.action)


def _trace(recorder: Recorder, seed: int, trace_id: str | None, *, policy: str) -> Trace:
  family = recorder.env.family
  return Trace(
    id=trace_id or f"{family}/{seed}",
    family=family,
    segments=tuple(recorder.segments),
    tools=recorder.env.tools,
    goal=recorder.segments[1].text,
    env_seed=seed,
    outcome=(Outcome.OK if recorder.success else Outcome.FAIL).value,
    policy=policy,
  )


def generate(
  output: str | os.PathLike[str],
  *,
  episodes: int,
  seed: int,
  families: Sequence[str] | None = None,
  split: str = "train",
  difficulty: int = 1,
  mistakes: Mistakes | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
  """Writes episodes as ArrayRecord of trace JSON, then index.json; returns the index.

  Episode i plays family i modulo the number of families (all that are registered unless named) and depends on (seed, i) and
  the options alone, so that a longer run begins with the shorter one. A failed episode is followed by what can be recovered of
  it, its splice and its hindsight. `progress(done, episodes)` is called now and then.

  Raises:
    ConfigError: no episodes or families are asked for, or a family that is not registered.
    DataError: `output` cannot be a folder.
  """
  families = registry.families() if families is None else families
  _check_options(episodes, families)
  envs = [registry.make(family, split=split, difficulty=difficulty) for family in families]
  mistakes = mistakes or Mistakes()
  records = _Records(_fresh_folder(output))
  for i in range(episodes):
    _write_episode(records, envs[i % len(envs)], seed, i, split=split, mistakes=mistakes)
    if progress is not None and ((i + 1) % _PROGRESS_EVERY == 0 or i + 1 == episodes):
      progress(i + 1, episodes)
  return records.close(
    {
      "episodes": episodes,
      "seed": seed,
      "families": list(families),
      **dataclasses.asdict(mistakes),
      "split": split,
      "difficulty": difficulty,
    }
  )


def _write_episode(records: _Records, env: Environment, seed: int, i: int, *, split: str, mistakes: Mistakes) -> None:
  env_seed = stable_seed("episode", seed, i) >> 16  # 48 bits: exact in any JSON reader
  rng = generator("faults", seed, i)
  trace_id = f"{env.family}/{split}/{seed}/{i}"
  # Which episodes fail is drawn apart, so that the others are the same with any share of failing ones.
  if generator("failing", seed, i).random() >= mistakes.failing:
    records.write(generate_episode(env, env_seed, fault_rate=mistakes.fault_rate, rng=rng, trace_id=trace_id))
    return
  failed = failing_episode(env, env_seed, rng=rng, trace_id=trace_id)
  records.write(failed)
  for how, recovered in (("splice", splice(failed, rng)), ("hindsight", hindsight(failed))):
    if isinstance(recovered, Left):
      records.counts["recovered"][f"{how}: {recovered}"] += 1
    else:
      records.counts["recovered"][how] += 1
      records.write(recovered)


class _Records:
  """A folder of records in the making: the traces, then the index that counts them."""

  def __init__(self, folder: pathlib.Path) -> None:
    self._folder = folder
    self._partial = folder / f"{SHARD_NAME}.partial"
    self._writer = ArrayRecordWriter(str(self._partial), "group_size:1")
    self._digest = xxhash.xxh3_128()
    self._written = 0
    self.counts = {name: collections.Counter[str]() for name in COUNTED}

  def write(self, trace: Trace) -> None:
    record = trace.to_json().encode()
    self._writer.write(record)
    self._digest.update(len(record).to_bytes(8, "little") + record)
    self._written += 1
    for name in ("family", "policy", "outcome"):
      self.counts[name][getattr(trace, name)] += 1
    for segment in trace.segments:
      if segment.err_kind and segment.role in ("call", "obs"):
        self.counts["fault" if segment.role == "call" else "err_kind"][segment.err_kind] += 1

  def close(self, options: dict[str, Any]) -> dict[str, Any]:
    """Writes the index, which begins with the options, and returns it."""
    self._writer.close()
    shard = self._partial.replace(self._folder / SHARD_NAME)
    index = {
      "format_version": FORMAT_VERSION,
      "kind": "episodes",
      **options,
      "counts": {name: dict(sorted(counts.items())) for name, counts in self.counts.items()},
      "digest": self._digest.hexdigest(),  # xxh3-128 over the records, each after its length in 8 little-endian bytes
      "shards": [{"file": SHARD_NAME, "records": self._written, "bytes": shard.stat().st_size}],
    }
    (self._folder / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return index


def _check_options(episodes: int, families: Sequence[str]) -> None:
  if episodes < 1:
    raise ConfigError(f"episodes is {episodes}; expected at least 1.")
  if not families:
    raise ConfigError("families is empty; name at least one environment family.")


def _fresh_folder(output: str | os.PathLike[str]) -> pathlib.Path:
  """The folder, without an index: an index stands only beside complete records."""
  folder = pathlib.Path(output)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)
  except OSError as error:
    raise DataError(f"output is {str(folder)!r}, which cannot be a folder to write to ({error}); name another.") from error
  return folder
