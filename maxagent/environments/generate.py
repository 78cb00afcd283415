"""Traces by acting: the oracle solves episodes, sometimes after really doing something wrong first."""

from __future__ import annotations

import collections
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash
from array_record.python.array_record_module import ArrayRecordWriter

from maxagent.environments import faults, registry
from maxagent.environments.base import Environment, Schema, generator, parse_action, stable_seed
from maxagent.errors import ConfigError, DataError
from maxagent.traces.schema import Outcome, Segment, Trace

FORMAT_VERSION = 1
SHARD_NAME = "episodes-00000.array_record"
MAX_FAULTS_IN_A_ROW = 2
MAX_FAULTS = 6  # per episode, so that a high rate cannot make a trace outgrow every context
_PROGRESS_EVERY = 200
# `does` stands before the name: a causal model reads what a tool is for, then its name, and copies what follows a match.
_SCHEMA_ORDER = ("does", "name", "args")


def tools_text(tools: Sequence[Schema]) -> str:
  """THE compact text of tool schemas, shared by generation, sampling and play: one JSON array, `does` before name and args."""
  ordered = [{key: tool[key] for key in sorted(tool, key=_schema_rank)} for tool in tools]
  return json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))


def _schema_rank(key: str) -> int:
  return _SCHEMA_ORDER.index(key) if key in _SCHEMA_ORDER else len(_SCHEMA_ORDER)


class _Failure(NamedTuple):
  action: str
  step: int
  fault: str
  err_kind: str | None


class _Recorder:
  """Executes actions and writes down what was done and seen."""

  def __init__(self, env: Environment, seed: int) -> None:
    goal, info = env.reset(seed)
    self.env = env
    self.goal = goal
    self.tools: tuple[Schema, ...] = info["tools"]
    self.segments = [Segment(role="tools", text=tools_text(self.tools)), Segment(role="goal", text=goal)]
    self.plan(env.oracle().plan)
    self.steps = 0
    self.faults = 0
    self.terminated = False
    self.success = False

  def plan(self, text: str | None) -> None:
    if text is not None:
      self.segments.append(Segment(role="plan", text=text))

  def act(self, action: str, *, fault: str | None, fixes: int | None) -> str | None:
    """Executes; returns the environment's err_kind. A misleading but legal call keeps "ok" on its obs and has "na" itself."""
    self.steps += 1
    obs, _, self.terminated, _, info = self.env.step(action)
    self.success = info["success"]
    parsed = parse_action(action)
    if parsed.kind == "answer":
      self.segments.append(Segment(role="answer", text=parsed.text, step=self.steps, fixes_step=fixes))
      return None
    status = "na" if fault and info["status"] == "ok" else info["status"]
    args = action.split(" ", 2)[2]
    place: dict[str, Any] = {"step": self.steps, "call_id": str(self.steps)}
    call = Segment(role="call", text=parsed.name, args=args, status=status, err_kind=fault, fixes_step=fixes, **place)
    err_kind: str | None = info["err_kind"]
    self.segments += [call, Segment(role="obs", text=obs, status=info["status"], err_kind=err_kind, **place)]
    self.faults += fault is not None
    return err_kind

  def turn_back(self, failure: _Failure, following: str, *, fault: str | None, rng: np.random.Generator) -> None:
    """Notices a failure and names the change. The reflection that announces another wrong action is marked err as well."""
    text = faults.reflection(failure.action, following, tools=self.tools, err_kind=failure.err_kind, rng=rng)
    status = "err" if fault else "na"
    self.segments.append(Segment(role="back", text="", step=failure.step))
    self.segments.append(Segment(role="reflect", text=text, step=failure.step, status=status, err_kind=fault))


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
  recorder = _Recorder(env, seed)
  failures: list[_Failure] = []  # since the last right action
  while not recorder.terminated:
    move = env.oracle()
    wrong = None
    if len(failures) < MAX_FAULTS_IN_A_ROW and recorder.faults < MAX_FAULTS and rng.random() < fault_rate:
      wrong = faults.wrong_action(env, move, rng, kinds, avoid=tuple(f.action for f in failures))
    fault, action = wrong or (None, move.action)
    if failures:
      recorder.turn_back(failures[-1], action, fault=fault, rng=rng)
    fixes = failures[-1].step if failures and fault is None else None
    err_kind = recorder.act(action, fault=fault, fixes=fixes)
    failures = [*failures, _Failure(action, recorder.steps, fault, err_kind)] if fault else []
  return Trace(
    id=trace_id or f"{env.family}/{seed}",
    family=env.family,
    segments=tuple(recorder.segments),
    tools=recorder.tools,
    goal=recorder.goal,
    env_seed=seed,
    outcome=(Outcome.OK if recorder.success else Outcome.FAIL).value,
    policy="oracle+faults" if recorder.faults else "oracle",
  )


def generate(
  output: str | os.PathLike[str],
  *,
  episodes: int,
  seed: int,
  families: Sequence[str] | None = None,
  fault_rate: float = 0.15,
  split: str = "train",
  difficulty: int = 1,
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
  """Writes episodes as ArrayRecord of trace JSON, then index.json; returns the index.

  Episode i plays family i modulo the number of families (all that are registered unless named) and depends on (seed, i) and
  the options alone, so that a longer run begins with the shorter one. `progress(done, episodes)` is called now and then.

  Raises:
    ConfigError: an option out of range, or a family that is not registered.
    DataError: `output` cannot be a folder.
  """
  families = registry.families() if families is None else families
  _check_options(episodes, fault_rate, families)
  envs = [registry.make(family, split=split, difficulty=difficulty) for family in families]
  folder = _fresh_folder(output)
  counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  digest = xxhash.xxh3_128()
  partial = folder / f"{SHARD_NAME}.partial"
  writer = ArrayRecordWriter(str(partial), "group_size:1")
  for i in range(episodes):
    trace = _numbered_episode(envs[i % len(envs)], seed, i, fault_rate=fault_rate, split=split)
    record = trace.to_json().encode()
    writer.write(record)
    digest.update(len(record).to_bytes(8, "little") + record)
    _count(trace, counts)
    if progress is not None and ((i + 1) % _PROGRESS_EVERY == 0 or i + 1 == episodes):
      progress(i + 1, episodes)
  writer.close()
  os.replace(partial, folder / SHARD_NAME)
  index = {
    "format_version": FORMAT_VERSION,
    "kind": "episodes",
    "episodes": episodes,
    "seed": seed,
    "families": list(families),
    "fault_rate": fault_rate,
    "split": split,
    "difficulty": difficulty,
    "counts": {name: dict(sorted(counts[name].items())) for name in ("family", "outcome", "fault", "err_kind")},
    "digest": digest.hexdigest(),  # xxh3-128 over the records, each after its length in 8 little-endian bytes
    "shards": [{"file": SHARD_NAME, "records": episodes, "bytes": (folder / SHARD_NAME).stat().st_size}],
  }
  (folder / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
  return index


def _numbered_episode(env: Environment, seed: int, i: int, *, fault_rate: float, split: str) -> Trace:
  env_seed = stable_seed("episode", seed, i) >> 16  # 48 bits: exact in any JSON reader
  rng = generator("faults", seed, i)
  return generate_episode(env, env_seed, fault_rate=fault_rate, rng=rng, trace_id=f"{env.family}/{split}/{seed}/{i}")


def _check_options(episodes: int, fault_rate: float, families: Sequence[str]) -> None:
  if episodes < 1:
    raise ConfigError(f"episodes is {episodes}; expected at least 1.")
  if not 0 <= fault_rate <= 1:
    raise ConfigError(f"fault_rate is {fault_rate}; expected 0 to 1, the chance of a wrong action before each right one.")
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


def _count(trace: Trace, counts: dict[str, collections.Counter[str]]) -> None:
  counts["family"][trace.family] += 1
  counts["outcome"][trace.outcome] += 1
  for segment in trace.segments:
    if segment.err_kind and segment.role in ("call", "obs"):
      counts["fault" if segment.role == "call" else "err_kind"][segment.err_kind] += 1
