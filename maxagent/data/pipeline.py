"""The packed rows of a run: an endless, resumable iterator of batches, the same for any number of processes.

Row i of the global stream belongs to virtual stream i mod V and its source is the mixture's choice. Every process plans every
row, from the tables of the shards alone, and reads the documents of the rows that its devices hold.

Rows may become longer as tokens are read (`data.lengths`): a step, whose rows are of one length, is in the phase that the
content tokens before it say. Text goes on at its position; a window of traces is read to its end in the bins that it was
packed in, and the next is packed for the longer rows; so nothing is read twice or left out.

The state is positions, never tokens: per stream and source three numbers, (document, offset in it, 0) for text and (first
document of a packing window, bins of it that were read, the phase it was packed in) for traces. Documents are counted per
stream, as in `order`. It is the same in every process, and any number of processes can go on from it.

    state = {format_version, identity, step, phase, next_row, tokens, added, plan, spent,
             positions: [[[document, offset, 0], [document, bins, phase]], ...]}
"""

from __future__ import annotations

import dataclasses
import functools
import json
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
import numpy.typing as npt

from maxagent.config.schema import Data
from maxagent.data.batch import Batch
from maxagent.data.heldout import heldout_batches
from maxagent.data.mixture import Mixture, Part, make_mixture
from maxagent.data.order import OrderedDocuments, Piece, Position, open_source
from maxagent.data.rows import RowWriter
from maxagent.errors import ConfigError, DataError

__all__ = ["Pipeline", "heldout_batches", "open_pipeline"]

STATE_VERSION = 3
_NUMBERS = ("step", "phase", "next_row", "added")
_LISTS = ("tokens", "plan", "spent")

# Which of a step's rows a process holds, in the order of its batches' rows; or a function of how many rows a step has.
Rows = Sequence[int] | Callable[[int], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class _Phase:
  """What holds from content token `start` on: how many rows a step has, how long they are and how they are dealt."""

  start: float
  rows: int
  length: int
  mixture: Mixture


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What every process computes alike; and which rows this process writes."""

  sources: tuple[OrderedDocuments, ...]
  phases: tuple[_Phase, ...]
  held: Callable[[int], tuple[int, ...]]  # of a step of so many rows
  identity: dict[str, Any]

  @property
  def streams(self) -> int:
    return self.phases[0].mixture.streams

  @property
  def tokens_per_step(self) -> int:
    return self.phases[0].rows * self.phases[0].length

  def positions(self, flat: bytes) -> npt.NDArray[np.int64]:
    """[streams, sources, 3], a view."""
    return np.frombuffer(flat, np.int64).reshape(self.streams, len(self.sources), 3)


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
  """A row, planned: the pieces of each source in it, in order, and where the sources stand after it."""

  pieces: tuple[tuple[int, Piece], ...]
  positions: dict[int, Position]
  content: dict[int, int]
  added: int


class _PackedRows(grain.IterDataset):
  """The batches as a Grain dataset, so that Grain's prefetch reads ahead and keeps the state of the batch it hands out."""

  def __init__(self, plan: _Plan) -> None:
    super().__init__()
    self._plan = plan

  def __iter__(self) -> _PackedRowsIterator:
    return _PackedRowsIterator(self._plan)


class _PackedRowsIterator(grain.DatasetIterator):
  def __init__(self, plan: _Plan) -> None:
    super().__init__()
    self._plan = plan
    self._step = self._phase = self._next_row = 0
    self._tokens = [0] * len(plan.sources)  # content tokens of each source in all rows before
    self._added = 0  # tokens in them that no document holds
    self._spent: tuple[int, ...] = ()  # sources that were read as often as they may be when the current round was planned
    self._round: list[int] = []  # source of each stream's row in the current round
    self._rows: dict[tuple[int, int], _Row] = {}  # rows of this round, planned: (source, stream)
    self._positions = np.zeros((plan.streams, len(plan.sources), 3), np.int64)

  def __next__(self) -> Batch:
    plan = self._plan
    phase = self._enter_phase()
    held = plan.held(phase.rows)
    writer = RowWriter(len(held), phase.length)
    at = {row: i for i, row in enumerate(held)}
    for number in range(phase.rows):
      stream = self._next_row % plan.streams
      if stream == 0:
        self._round = []
      if stream == len(self._round):
        self._plan_round(phase.mixture)
      row = self._row(self._round[stream], stream)
      if number in at:
        for source, piece in row.pieces:
          document, start, stop = plan.sources[source].read(stream, piece)
          if len(document):  # else damaged and quarantined: its place stays padding
            writer.write(at[number], document, start, stop, source)
      for source, position in row.positions.items():
        self._positions[stream, source] = position
        self._tokens[source] += row.content[source]
      self._added += row.added
      self._next_row += 1
    self._step += 1
    return writer.batch()

  def get_state(self) -> dict[str, Any]:
    # Bytes, as Grain's prefetch copies the state deeply at every batch.
    return {
      "step": self._step,
      "phase": self._phase,
      "next_row": self._next_row,
      "added": self._added,
      "tokens": tuple(self._tokens),
      "plan": tuple(self._round) if self._next_row % self._plan.streams else (),
      "spent": self._spent,
      "positions": self._positions.tobytes(),
    }

  def set_state(self, state: dict[str, Any]) -> None:
    self._step, self._phase, self._next_row, self._added = (state[name] for name in _NUMBERS)
    self._tokens = list(state["tokens"])
    self._round = list(state["plan"])
    self._spent = tuple(state["spent"])
    self._rows.clear()
    self._positions = self._plan.positions(state["positions"]).copy()

  def _enter_phase(self) -> _Phase:
    """The phase of the coming step; the rest of a round that was planned for shorter rows is planned anew."""
    read = sum(self._tokens)
    current = max(number for number, phase in enumerate(self._plan.phases) if phase.start <= read)
    if current != self._phase:
      self._phase = current
      del self._round[self._next_row % self._plan.streams :]
    return self._plan.phases[current]

  def _plan_round(self, mixture: Mixture) -> None:
    """Adds the sources of the streams that have none in this round."""
    self._rows.clear()
    self._spent = self._spent_sources()
    number, first = divmod(self._next_row, self._plan.streams)
    self._round += mixture.plan_round(number, self._tokens, self._content, self._spent, first=first)

  def _content(self, source: int, stream: int) -> tuple[int, int]:
    row, filler = self._row(source, stream), self._plan.phases[self._phase].mixture.filler
    return row.content[source], row.content.get(filler, 0) if filler not in (None, source) else 0

  def _spent_sources(self) -> tuple[int, ...]:
    limits = [(i, source, source.max_epochs) for i, source in enumerate(self._plan.sources)]
    streams = self._positions.tolist()
    return tuple(
      i for i, source, most in limits if most and max(source.epochs(row[i], v) for v, row in enumerate(streams)) >= most
    )

  def _row(self, source: int, stream: int) -> _Row:
    """The stream's next row, if it is a row of this source; gaps are filled with the filler's text."""
    key = (source, stream)
    if key not in self._rows:
      self._rows[key] = self._planned(source, stream)
    return self._rows[key]

  def _planned(self, source: int, stream: int) -> _Row:
    plan, phase = self._plan, self._plan.phases[self._phase]
    room = phase.length
    pieces: list[tuple[int, Piece]] = []
    positions, content = dict[int, Position](), dict[int, int]()
    for number in dict.fromkeys((source, phase.mixture.filler)):
      if number is None or not room or (number != source and number in self._spent):
        continue
      first, second, third = self._positions[stream, number].tolist()
      taken = plan.sources[number].take(stream, (first, second, third), room, self._phase)
      pieces += [(number, piece) for piece in taken.pieces]
      positions[number], content[number] = taken.position, taken.content
      room -= taken.tokens
    return _Row(tuple(pieces), positions, content, phase.length - room - sum(content.values()))


class Pipeline:
  """Batches of this process's rows, read ahead by `data.prefetch_batches`; make one with `open_pipeline`."""

  def __init__(self, plan: _Plan, *, prefetch_batches: int) -> None:
    self._plan = plan
    reading = grain.experimental.ThreadPrefetchIterDataset(_PackedRows(plan), prefetch_buffer_size=prefetch_batches)
    self._reading: list[Any] = [iter(reading)]
    # Grain's iterator complains when it dies with the interpreter; this ends it before, if the owner did not.
    self._end = weakref.finalize(self, _end_reading, self._reading, plan.sources)

  @property
  def _iterator(self) -> Any:
    if not self._reading:
      raise DataError("the pipeline is closed; open another one with open_pipeline.")
    return self._reading[0]

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    batch: Batch = next(self._iterator)
    return batch

  @property
  def phase(self) -> int:
    """Which of `data.shapes` the last batch had that was handed out."""
    number: int = self._iterator.get_state()["phase"]
    return number

  def get_state(self) -> dict[str, Any]:
    """The position after the last batch handed out, as JSON; the same in every process."""
    state = self._iterator.get_state()
    return {
      "format_version": STATE_VERSION,
      "identity": self._plan.identity,
      **{name: state[name] for name in _NUMBERS},
      **{name: list(state[name]) for name in _LISTS},
      "positions": self._plan.positions(state["positions"]).tolist(),
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues from a state, which any number of processes may have saved.

    Raises:
      DataError: the state is of other data.
    """
    _check_state(state, self._plan)
    own = {name: state[name] for name in (*_NUMBERS, *_LISTS)}
    self._iterator.set_state(own | {"positions": np.array(state["positions"], np.int64).tobytes()})

  def report(self) -> dict[str, Any]:
    """What was read up to the last batch handed out, by all processes together.

    `asked` and `realised` are shares of content tokens per source; `fill` is the share of row tokens that is no padding and
    `added` the share that formats added; `epochs` the largest over the streams; `quarantined` the damaged records met here.
    """
    state = self._iterator.get_state()
    plan, tokens, capacity = self._plan, state["tokens"], max(1, state["step"] * self._plan.tokens_per_step)
    positions = plan.positions(state["positions"]).tolist()
    return {
      "asked": {source.name: n for source, n in zip(plan.sources, plan.phases[0].mixture.asked(sum(tokens)), strict=True)},
      "realised": {source.name: n / max(1, sum(tokens)) for source, n in zip(plan.sources, tokens, strict=True)},
      "tokens": {source.name: n for source, n in zip(plan.sources, tokens, strict=True)},
      "fill": (sum(tokens) + state["added"]) / capacity,
      "added": state["added"] / capacity,
      "epochs": {s.name: max(s.epochs(row[i], v) for v, row in enumerate(positions)) for i, s in enumerate(plan.sources)},
      "spent": {source.name: int(i in state["spent"]) for i, source in enumerate(plan.sources)},
      "quarantined": {source.name: len(source.shards.quarantined) for source in plan.sources},
    }

  def close(self) -> None:
    """Stops reading ahead and closes the files."""
    self._end()


def _end_reading(reading: list[Any], sources: Sequence[OrderedDocuments]) -> None:
  reading.pop().close()
  for source in sources:
    source.shards.close()


def open_pipeline(
  data: Data,
  tokenizer_digest: str,
  *,
  rows: Rows,
  split: str = "train",
  supervised: npt.NDArray[np.bool_] | None = None,
) -> Pipeline:
  """The endless batches of a run.

  Args:
    data: the run's data part.
    tokenizer_digest: `Tokenizer.digest` of the run's tokenizer.
    rows: which rows of a step this process holds; a function where `data.lengths` changes how many there are.
    split: the folder of each source to read.
    supervised: [roles, statuses], what weighs something in the loss; asked for where `data.shares_of` is "supervised".

  Raises:
    ConfigError: no source; streams and rows of a step that do not divide one another; a share that cannot be reached.
    EmptySourceError, TokenizerMismatchError, DamagedShardError, DataError: as `open_shards`.
  """
  if not data.sources:
    raise ConfigError("data.sources is empty; name at least one folder written by `maxagent data build`.")
  held = _held(rows)
  held(data.global_batch)
  sources = tuple(OrderedDocuments(source, open_source(source, data, tokenizer_digest, split), data) for source in data.sources)
  shares = _content_shares(sources, data, supervised)
  phases = tuple(_phase(sources, data, shares, number) for number in range(len(data.shapes)))
  return Pipeline(_Plan(sources, phases, held, _identity(sources, data)), prefetch_batches=data.prefetch_batches)


def _held(rows: Rows) -> Callable[[int], tuple[int, ...]]:
  @functools.cache
  def held(count: int) -> tuple[int, ...]:
    own = tuple(rows(count) if callable(rows) else rows)
    if not own or len(set(own)) < len(own) or not 0 <= min(own) <= max(own) < count:
      raise ConfigError(f"rows are {list(own)}; expected different rows of 0 to {count - 1}, at least one.")
    return own

  return held


def _phase(
  sources: Sequence[OrderedDocuments], data: Data, shares: Sequence[tuple[float, Sequence[float]]], number: int
) -> _Phase:
  start, rows, length = data.shapes[number]
  streams = {source.name: source.shards.index.streams for source in sources}
  if len(set(streams.values())) > 1:
    raise ConfigError(f"sources were built with different numbers of streams, {streams}; build them with one --streams.")
  count = next(iter(streams.values()))
  if count % rows and rows % count:
    named = f"data.lengths gives a step {rows} rows of {length} tokens" if number else f"data.global_batch is {rows}"
    raise ConfigError(
      f"{named} and the shards have {count} streams; one must divide the other. "
      "Change the batch, or build the data again with another --streams."
    )
  parts = [Part(name=s.name, splittable=s.splittable, fill=s.mean_fill(number)) for s in sources]
  return _Phase(start, rows, length, make_mixture(parts, shares, streams=count, row_tokens=length))


def _content_shares(
  sources: Sequence[OrderedDocuments], data: Data, supervised: npt.NDArray[np.bool_] | None
) -> list[tuple[float, list[float]]]:
  """The phases of the mixture in shares of content tokens; those of supervised tokens are divided by how many a source has."""
  if data.shares_of == "content":
    return [(start, list(shares)) for start, shares in data.phases]
  if supervised is None:
    raise ConfigError("data.shares_of is 'supervised', and what weighs something is not told; give open_pipeline `supervised`.")
  parts = [source.shards.index.target_share(supervised) for source in sources]
  phases = []
  for start, shares in data.phases:
    for source, share, part in zip(sources, shares, parts, strict=True):
      if share and not part:
        raise ConfigError(
          f"data.shares_of is 'supervised', and no token of {source.name} weighs anything under this objective: it can have no "
          "share. Give it a weight (objective.overrides), leave it out of data.schedule, or set data.shares_of=content."
        )
    content = [share / part if share else 0.0 for share, part in zip(shares, parts, strict=True)]
    phases.append((start, [n / sum(content) for n in content]))
  return phases


def _identity(sources: Sequence[OrderedDocuments], data: Data) -> dict[str, Any]:
  """What must be equal for positions to mean the same rows."""
  return {
    "sequence_tokens": data.sequence_tokens,
    "lengths": [list(phase) for phase in data.lengths],
    "packing_window": data.packing_window,
    "seed": data.seed,
    "formats": json.loads(json.dumps(dataclasses.asdict(data.formats))),
    "sources": {source.name: source.shards.index.digest for source in sources},
  }


def _check_state(state: dict[str, Any], plan: _Plan) -> None:
  if state.get("format_version") != STATE_VERSION:
    raise DataError(f"data state has format version {state.get('format_version')}; this release reads {STATE_VERSION}.")
  different = [key for key, value in plan.identity.items() if state["identity"].get(key) != value]
  if different:
    raise DataError(
      f"data state was saved with another {' and '.join(different)}: {[state['identity'].get(key) for key in different]}, now "
      f"{[plan.identity[key] for key in different]}. Resume with the same data, or begin a new run with training.init_from."
    )
  if len(state["positions"]) != plan.streams:
    raise DataError(
      f"data state holds {len(state['positions'])} streams; the shards have {plan.streams}. Build them with as many."
    )
