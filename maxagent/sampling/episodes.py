"""THE loop of an agent in a world, for evals, RL and play alike.

The model writes a turn, up to the end of a call or of an answer; the world executes it and its observation is appended; and so
on until an answer, the turn limit or a full context. Episodes are played `decoder.slots` at a time, and a slot takes the next
episode as soon as its own has ended.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from maxagent.environments import faults
from maxagent.environments.base import Environment, generator, parse_action, tools_text
from maxagent.sampling.engine import Turn
from maxagent.sampling.turns import Written, prompt_ids, read_turn, segment_ids
from maxagent.tokenizer import Tokenizer
from maxagent.traces.schema import Segment, Trace

ANSWERED, TURN_LIMIT, CONTEXT_FULL = "answered", "turn_limit", "context_full"
# Told of every segment as it happens: (number of the task, segment).
Watch = Callable[[int, Segment], None]
# Asked between blocks of decoding whether to leave; of several processes, all must answer alike.
Stop = Callable[[], bool]


class Decoder(Protocol):
  """What writes the turns: `sampling.engine.Engine`, or a script."""

  slots: int

  def reset(self, slot: int, *, seed: int = 0) -> None:
    """Empties a slot."""

  def room(self, slot: int) -> int:
    """How many more tokens the slot holds."""

  def feed(self, slot: int, tokens: Sequence[int]) -> None:
    """Appends the harness's words and waits for a turn."""

  def retract(self, slot: int, count: int) -> None:
    """Takes the last tokens back."""

  def decode(self) -> Mapping[int, Turn]:
    """Goes on writing; returns the turns that ended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One episode to play. With a `fault_seed`, one wrong action is forced at a step drawn from it and really executed."""

  environment: Environment  # its own; it is reset to `seed`
  seed: int
  fault_seed: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
  """The wrong action that the harness put in the place of the model's."""

  step: int  # of the episode, from 1
  kind: str
  action: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeResult:
  """What happened, counted."""

  trace: Trace
  kind: str  # clean | recovery
  success: bool  # said by the environment's verifier
  ended: str  # answered | turn_limit | context_full
  turns: int  # actions, a forced one included
  actions: int  # the model's own
  invalid_calls: int  # of the model's own: no action, malformed, an undeclared tool, or not its arguments
  failed_actions: int  # those, forced or the model's, that failed or were forced, and after which the model acted again
  repeated_errors: int  # of these: the model's next action was the same
  fault: Fault | None  # None in a recovery episode that ended before its step, or whose state offered no wrong action

  def record(self, step: int) -> dict[str, Any]:
    """The JSON-able form that is stored in episodes.jsonl."""
    return {
      "trace": json.loads(self.trace.to_json()),
      "kind": self.kind,
      "success": self.success,
      "step": step,
      "ended": self.ended,
      "turns": self.turns,
      "fault": dataclasses.asdict(self.fault) if self.fault else None,
    }


def never() -> bool:
  """The answer of one who is not told to stop."""
  return False


class Interrupted(Exception):
  """`run_episodes` was told to stop before all episodes had ended."""


def run_episodes(
  decoder: Decoder, tasks: Sequence[Task], *, tokenizer: Tokenizer, turn_limit: int, watch: Watch | None = None,
  stop: Stop = never,
) -> list[EpisodeResult]:  # fmt: skip
  """Plays all tasks; results in their order.

  Args:
    decoder: what writes the model's turns.
    tasks: the episodes.
    tokenizer: that of the decoder.
    turn_limit: actions of an episode, a forced one included.
    watch: told of every segment as it happens.
    stop: asked between blocks of decoding.

  Raises:
    Interrupted: `stop` said so.
  """
  waiting = collections.deque(enumerate(tasks))
  free = list(range(decoder.slots))
  playing: dict[int, _Episode] = {}
  results: dict[int, EpisodeResult] = {}
  while waiting or playing:
    while waiting and free:
      number, task = waiting.popleft()
      slot = free.pop()
      decoder.reset(slot, seed=number)
      playing[slot] = _Episode(number, task, tokenizer, turn_limit=turn_limit, watch=watch)
      playing[slot].begin(decoder, slot)
    if stop():
      raise Interrupted
    turns = decoder.decode() if any(episode.ended is None for episode in playing.values()) else {}
    for slot, turn in turns.items():
      playing[slot].take(turn, decoder, slot)
    for slot in [slot for slot, episode in playing.items() if episode.ended]:
      episode = playing.pop(slot)
      results[episode.number] = episode.result()
      free.append(slot)
  return [results[number] for number in range(len(tasks))]


def opening(info: Mapping[str, Any]) -> tuple[Segment, ...]:
  """The harness's first words, of what `Environment.reset` told: the tools and the goal."""
  return Segment(role="tools", text=tools_text(info["tools"])), Segment(role="goal", text=info["goal"])


class _Episode:
  """One task in play."""

  def __init__(self, number: int, task: Task, tokenizer: Tokenizer, *, turn_limit: int, watch: Watch | None) -> None:
    self.number = number
    self.ended: str | None = None
    self._task = task
    self._world = task.environment
    self._tokenizer = tokenizer
    self._turn_limit = turn_limit
    self._watch = watch
    self._segments: list[Segment] = []
    self._counts: collections.Counter[str] = collections.Counter()
    self._failed: Any = None  # the last action, if it failed
    self._fault: Fault | None = None
    self._success = False
    _, self._info = self._world.reset(task.seed)
    self._rng = generator("forced fault", self._world.family, task.seed, task.fault_seed or 0)
    calls = self._world.remaining() - 1  # the last action is the answer
    self._fault_step = None if task.fault_seed is None else 1 + int(self._rng.integers(max(1, calls)))

  def begin(self, decoder: Decoder, slot: int) -> None:
    """Writes tools and goal."""
    start = opening(self._info)
    self._show(*start)
    self._tell(prompt_ids(start, self._tokenizer), decoder, slot)

  def take(self, turn: Turn, decoder: Decoder, slot: int) -> None:
    """Executes the model's turn, or the wrong action that is due in its place."""
    written = read_turn(turn.tokens, self._tokenizer)
    wrong = self._due_fault()
    if wrong is not None:
      self._force(*wrong, written=written, turn=turn, decoder=decoder, slot=slot)
      return
    self._counts["actions"] += 1
    if turn.full and not turn.closed:
      self._show(*written.segments)
      self.ended = CONTEXT_FULL
      return
    self._count_model_action(written.action, turn)
    if written.action is not None:
      self._show(*written.segments[:-1])
      self._act(written.action, written.segments[-1], [], decoder=decoder, slot=slot)
      return
    # A turn without an action is one the world refuses, in its own words.
    self._show(*written.segments)
    self._act("", None, [self._tokenizer.end_id] if written.open else [], decoder=decoder, slot=slot)

  def result(self) -> EpisodeResult:
    """What is stored and counted of the episode."""
    task, counts = self._task, self._counts
    kind = "clean" if task.fault_seed is None else "recovery"
    trace = Trace(
      id=f"{self._world.family}-{task.seed}-{kind}",
      family=self._world.family,
      segments=tuple(self._segments),
      tools=tuple(self._info["tools"]),
      goal=self._info["goal"],
      env_seed=task.seed,
      outcome="ok" if self._success else "fail",
      policy="model",
    )
    return EpisodeResult(
      trace=trace,
      kind=kind,
      success=self._success,
      ended=self.ended or "",
      turns=counts["turns"],
      actions=counts["actions"],
      invalid_calls=counts["invalid"],
      failed_actions=counts["failed"],
      repeated_errors=counts["repeated"],
      fault=self._fault,
    )

  def _force(self, kind: str, action: str, *, written: Written, turn: Turn, decoder: Decoder, slot: int) -> None:
    """Puts a wrong call in the place of the action that the model wrote; the plan or thought before it stays."""
    self._fault = Fault(step=self._counts["turns"] + 1, kind=kind, action=action)
    _, name, args = action.split(" ", 2)
    call = Segment(role="call", text=name, args=args)
    self._show(*written.segments[:-1])
    decoder.retract(slot, len(turn.tokens) - written.last_start)
    self._act(action, call, segment_ids(call, self._tokenizer), decoder=decoder, slot=slot)

  def _due_fault(self) -> tuple[str, str] | None:
    """A wrong action, if its step has come; where the state offers none, the next step is tried."""
    if self._fault_step is None or self._fault or self._counts["turns"] + 1 < self._fault_step:
      return None
    return faults.wrong_action(self._world, self._world.oracle(), self._rng)

  def _count_model_action(self, action: str | None, turn: Turn) -> None:
    key = _same(action) if action is not None else turn.tokens
    self._counts["invalid"] += _is_invalid(action, self._info["tools"])
    if self._failed is not None:
      self._counts["failed"] += 1
      self._counts["repeated"] += key == self._failed
    self._failed = key  # until its observation says that it did not fail

  def _act(self, action: str, segment: Segment | None, ids: list[int], *, decoder: Decoder, slot: int) -> None:
    """Executes an action; `ids` are what the decoder does not hold yet of the turn."""
    self._counts["turns"] += 1
    step = self._counts["turns"]
    text, _, terminated, _, info = self._world.step(action)
    forced = self._fault if self._fault and self._fault.step == step else None
    if segment:
      self._show(_acted(segment, step, info, forced))
    if terminated:
      self._success = bool(info["success"])
      self.ended = ANSWERED
      return
    if forced:
      self._failed = _same(action)
    elif info["status"] != "err":
      self._failed = None
    observation = Segment(role="obs", text=text, step=step, call_id=str(step), status=info["status"], err_kind=info["err_kind"])
    self._show(observation)
    if step >= self._turn_limit:
      self.ended = TURN_LIMIT
      return
    self._tell(ids + segment_ids(observation, self._tokenizer), decoder, slot)

  def _tell(self, ids: list[int], decoder: Decoder, slot: int) -> None:
    if len(ids) < decoder.room(slot):
      decoder.feed(slot, ids)
    else:
      self.ended = CONTEXT_FULL

  def _show(self, *segments: Segment) -> None:
    self._segments += segments
    if self._watch:
      for segment in segments:
        self._watch(self.number, segment)


def _acted(segment: Segment, step: int, info: Mapping[str, Any], forced: Fault | None) -> Segment:
  """An action's segment with what the environment said of it; a forced call that was legal has na, as in generated traces."""
  if segment.role == "call":
    segment = dataclasses.replace(segment, call_id=str(step))
  status = "err" if segment.err_kind else "na" if forced and info["status"] == "ok" else info["status"]
  err_kind = segment.err_kind or (forced.kind if forced else info["err_kind"])
  return dataclasses.replace(segment, step=step, status=status, err_kind=err_kind)


def _same(action: str) -> Any:
  """What two actions share when they are the same action: spelling inside the JSON does not count."""
  parsed = parse_action(action)
  return (
    action if parsed.kind == "malformed" else (parsed.kind, parsed.name, json.dumps(parsed.args, sort_keys=True), parsed.text)
  )


def _is_invalid(action: str | None, tools: Sequence[Mapping[str, Any]]) -> bool:
  """Whether the model's action is no answer and no call of a declared tool with its arguments' names."""
  parsed = parse_action(action or "")
  if parsed.kind == "answer":
    return False
  declared = {tool["name"]: set(tool["args"]) for tool in tools}
  return parsed.kind == "malformed" or declared.get(parsed.name) != set(parsed.args)
