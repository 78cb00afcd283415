"""Slots that decode together: forced tokens in, sampled turns out.

    engine = Engine(params, config.model, layout, grammar=Grammar.of(tokenizer), slots=64, length=512)
    engine.feed(row, prompt)              # any number of rows
    while engine.busy:
      for row, turn in engine.decode().items():   # rows whose turn closed in this block of steps
        engine.feed(row, observation)     # or engine.reset(row) and a new prompt: no other row waits

The host keeps every row's tokens and how many of them the cache holds, so that a prefix is never written twice and a turn can
be taken back. A row that starts anew writes over the old one from position 0: what lies behind a row's own position is masked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from maxagent.config import Model
from maxagent.errors import ConfigError
from maxagent.models import transformer
from maxagent.parallel.rules import Layout
from maxagent.sampling import programs
from maxagent.sampling.logits import NO_ROLE, Grammar
from maxagent.sampling.programs import NO_TOKEN, Block, Program

PREFILL_TOKENS = (16, 64, 256)  # widths of a prefill; each that is used compiles once
PREFILL_ROWS = 2  # rows of one prefill in each group of devices: refills come few at a time
FIRST_KEYS = 256  # a program reads the cache as far as its rows reach, rounded up to this times a power of 2
# Up to this many forced tokens go through the decode steps, beside the rows that sample; more are prefilled.
QUEUE_TOKENS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """How turns are sampled."""

  turn_tokens: int = 64  # a turn that is not closed by then is cut; the longest of the generated traces' have about 40
  block_steps: int = 16  # decode steps between two looks of the host; at least QUEUE_TOKENS
  temperature: float | None = None  # None: greedy
  seed: int = 0  # of the draws; unused when greedy

  def __post_init__(self) -> None:
    assert self.block_steps >= QUEUE_TOKENS, f"block_steps is {self.block_steps}; a queue of {QUEUE_TOKENS} must fit"
    if self.temperature is not None and not self.temperature > 0:
      raise ConfigError(
        f"temperature is {self.temperature}; expected a number above 0, or none at all to take the likeliest token."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
  """What the model wrote between two words of the harness."""

  tokens: tuple[int, ...]
  log_probs: tuple[float, ...]  # nats, of the whole vocabulary at temperature 1
  closed: bool  # by the end of a call or an answer; else it was cut
  full: bool = False  # it was cut because the slot holds no more tokens


@dataclasses.dataclass(kw_only=True)
class _Row:
  tokens: list[int] = dataclasses.field(default_factory=list)
  written: int = 0  # how many of them the cache holds
  turn: list[int] = dataclasses.field(default_factory=list)
  log_probs: list[float] = dataclasses.field(default_factory=list)
  role: int = NO_ROLE
  waiting: bool = False  # for the model to close its turn
  seed: int = 0

  @property
  def pending(self) -> list[int]:
    return self.tokens[self.written :]


class Engine:
  """`slots` rows with a cache of `length` tokens each, for one set of weights."""

  def __init__(
    self,
    params: Any,
    model: Model,
    layout: Layout,
    *,
    grammar: Grammar,
    slots: int,
    length: int,
    decoding: Decoding = Decoding(),
  ) -> None:
    """Copies the weights into decode layout once and makes an empty cache.

    `slots` is rounded up to a multiple of the groups of devices that hold rows; `self.slots` says to how many.
    """
    params, model = transformer.without_mtp(params, model)
    weight_bytes = sum(leaf.size for leaf in jax.tree.leaves(params)) * np.dtype(np.float32).itemsize
    axes = programs.row_axes(layout.mesh, weight_bytes)
    self.program = Program(
      model=model,
      grammar=grammar,
      mesh=layout.mesh,
      row_axes=axes,
      length=length,
      keys=length,
      block_steps=decoding.block_steps,
      greedy=decoding.temperature is None,
    )
    self.slots = slots = -(-slots // self.program.row_parts) * self.program.row_parts
    self.length = length
    self.decoding = decoding
    self._params = programs.place_weights(params, model, mesh=layout.mesh, axes=axes)
    self._cache = programs.empty_cache(self.program, slots)
    self._rows = [_Row() for _ in range(slots)]
    self._temperature = self._put(np.asarray(decoding.temperature or 1.0, np.float32), PartitionSpec())

  @property
  def busy(self) -> bool:
    """Whether a row waits for the model."""
    return any(row.waiting for row in self._rows)

  def reset(self, slot: int, *, seed: int = 0) -> None:
    """Empties a slot. `seed`, with the engine's own, fixes what the slot draws next, whichever slot it is."""
    draws = np.random.SeedSequence((self.decoding.seed, seed)).generate_state(1)
    self._rows[slot] = _Row(seed=int(draws[0]))

  def room(self, slot: int) -> int:
    """How many more tokens the slot holds."""
    return self.length - len(self._rows[slot].tokens)

  def feed(self, slot: int, tokens: Sequence[int]) -> None:
    """Appends the harness's words; the turn is then the model's. At least one token must still fit after them."""
    row = self._rows[slot]
    assert len(tokens) < self.room(slot), f"{len(tokens)} tokens for a slot with room for {self.room(slot)}"
    row.tokens += tokens
    row.turn, row.log_probs, row.role, row.waiting = [], [], NO_ROLE, True

  def retract(self, slot: int, count: int) -> None:
    """Takes the last `count` tokens back, as if they had never been."""
    row = self._rows[slot]
    assert 0 <= count < len(row.tokens), f"{count} tokens to take back from {len(row.tokens)}"
    del row.tokens[len(row.tokens) - count :]
    # The last token is always written again: what follows it needs its hidden state.
    row.written = min(row.written, len(row.tokens) - 1)

  def decode(self) -> dict[int, Turn]:
    """Runs one block of steps for all waiting rows; returns the turns that ended in it. One read from the mesh."""
    self._prefill()
    waiting = [slot for slot, row in enumerate(self._rows) if row.waiting]
    if not waiting:
      return {}
    reach = max(self._reach(self._rows[slot]) for slot in waiting)
    self._cache, outputs = programs.decode(
      self._params, self._cache, self._block(waiting), self._temperature, program=self._reading(reach)
    )
    tokens, log_probs, roles, closes = jax.device_get(outputs)
    turns = {}
    for slot in waiting:
      row = self._rows[slot]
      sampled = tokens[slot] != NO_TOKEN
      row.turn += tokens[slot][sampled].tolist()
      row.log_probs += log_probs[slot][sampled].tolist()
      row.tokens += tokens[slot][sampled].tolist()
      row.written = len(row.tokens) - 1
      row.role, closed = int(roles[slot]), bool(closes[slot])
      if closed or not self._budget(row):
        row.waiting = False
        full = not closed and len(row.tokens) >= self.length
        turns[slot] = Turn(tokens=tuple(row.turn), log_probs=tuple(row.log_probs), closed=closed, full=full)
    return turns

  def _budget(self, row: _Row) -> int:
    return min(self.decoding.turn_tokens - len(row.turn), self.length - len(row.tokens))

  def _reach(self, row: _Row) -> int:
    """Positions that the row may have written after the next block."""
    return min(row.written + self.decoding.block_steps, len(row.tokens) + self._budget(row))

  def _reading(self, reach: int) -> Program:
    keys = FIRST_KEYS
    while keys < reach:
      keys *= 2
    return dataclasses.replace(self.program, keys=min(keys, self.length))

  def _block(self, waiting: list[int]) -> Block:
    """What the next block is asked; rows that do not wait get no budget."""
    queue = np.zeros((self.slots, QUEUE_TOKENS), np.int32)
    values = {name: np.zeros(self.slots, np.int32) for name in ("queued", "starts", "roles", "budgets")}
    seeds = np.zeros(self.slots, np.uint32)
    for slot in waiting:
      row = self._rows[slot]
      pending = row.pending
      queue[slot, : len(pending)] = pending
      for name, value in (
        ("queued", len(pending)),
        ("starts", row.written),
        ("roles", row.role),
        ("budgets", self._budget(row)),
      ):
        values[name][slot] = value
      seeds[slot] = row.seed
    return jax.tree.map(lambda array: self._put(array, self.program.rows()), Block(queue=queue, seeds=seeds, **values))

  def _prefill(self) -> None:
    """Writes the tokens of rows with long queues, all but the last; a few rows of every group of devices at a time."""
    per_group = self.slots // self.program.row_parts
    while needs := {
      s: len(row.pending) - 1 for s, row in enumerate(self._rows) if row.waiting and len(row.pending) > QUEUE_TOKENS
    }:
      groups = [[s for s in needs if s // per_group == group][:PREFILL_ROWS] for group in range(self.program.row_parts)]
      widest = max(needs[slot] for group in groups for slot in group)
      self._prefill_some(groups, next((width for width in PREFILL_TOKENS if width >= widest), PREFILL_TOKENS[-1]))

  def _prefill_some(self, groups: list[list[int]], width: int) -> None:
    """One prefill: row i of group g is at [g * PREFILL_ROWS + i]."""
    per_group = self.slots // len(groups)
    rows_per_group = min(PREFILL_ROWS, per_group)
    size = len(groups) * rows_per_group
    tokens = np.zeros((size, width), np.int32)
    rows, starts, counts = (np.zeros(size, np.int32) for _ in range(3))
    for g, slots in enumerate(groups):
      # A group's unused places name rows of it that are not in use here: no row may stand twice.
      spare = [slot for slot in range(g * per_group, (g + 1) * per_group) if slot not in slots]
      for i, slot in enumerate((slots + spare)[:rows_per_group]):
        place = g * rows_per_group + i
        rows[place] = slot - g * per_group
        if slot in slots:
          row = self._rows[slot]
          part = row.pending[:-1][:width]
          tokens[place, : len(part)], starts[place], counts[place] = part, row.written, len(part)
          row.written += len(part)
    arrays = [self._put(array, self.program.rows()) for array in (rows, tokens, starts, counts)]
    reach = int((starts + counts).max())
    self._cache = programs.prefill(self._params, self._cache, *arrays, program=self._reading(reach))

  def _put(self, array: np.ndarray, spec: PartitionSpec) -> jax.Array:
    """An array that every process holds whole, on the mesh."""
    sharding = self.program.sharding(spec)
    if sharding is None or jax.process_count() == 1:
      return jax.device_put(array, sharding)
    # device_put would compare the array over all processes first, at every block.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
