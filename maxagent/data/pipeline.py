"""The packed rows of a run: an endless, resumable iterator of batches, the same for any number of processes.

Row i of the global stream belongs to virtual stream i mod V and its source is the mixture's choice. A process writes the rows
that its devices hold; of the other streams it follows only which window and row they are at, from the lengths of the documents.

The state is positions, never tokens: per stream and source a pair, (document, offset in it) for text and (window, row in it)
for traces, which are packed `packing_window` at a time. Documents are counted per stream, as in `order`.

    state = {format_version, identity, next_row, tokens, plan, streams: {"0": [[document, offset], [window, row]], ...}}

`streams` holds the streams of this process; `merge_states` unites those of all processes, and any number of processes can be
given the union.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
import numpy.typing as npt

from maxagent.config.schema import Data
from maxagent.data.batch import Batch
from maxagent.data.heldout import heldout_batches
from maxagent.data.mixture import Mixture, Part, make_mixture
from maxagent.data.order import OrderedDocuments, open_source
from maxagent.data.rows import RowWriter
from maxagent.errors import ConfigError, DamagedShardError, DataError

__all__ = ["Pipeline", "heldout_batches", "merge_states", "open_pipeline"]

STATE_VERSION = 1


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What every process computes alike: the sources, how rows are dealt, and which rows this process writes."""

  sources: tuple[OrderedDocuments, ...]
  mixture: Mixture
  length: int
  global_batch: int
  rows: tuple[int, ...]
  identity: dict[str, Any]

  @property
  def streams(self) -> int:
    return self.mixture.streams

  def own_streams(self, next_row: int) -> frozenset[int]:
    """Streams that a row of this process belongs to, in any batch."""
    batches = max(1, self.streams // self.global_batch)
    return frozenset((next_row + k * self.global_batch + row) % self.streams for k in range(batches) for row in self.rows)


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
    self._next_row = 0
    self._tokens = [0] * len(plan.sources)  # content tokens of each source in all rows before, of every process
    self._round: list[int] = []  # source of each stream's row in the current round
    self._positions = np.zeros((plan.streams, len(plan.sources), 2), np.int64)
    self._own = plan.own_streams(0)

  def __next__(self) -> Batch:
    plan = self._plan
    writer = RowWriter(len(plan.rows), plan.length)
    at = {row: i for i, row in enumerate(plan.rows)}
    for row in range(plan.global_batch):
      stream = self._next_row % plan.streams
      if stream == 0 or not self._round:
        self._round = plan.mixture.plan_round(self._next_row // plan.streams, self._tokens, self._own_tokens)
      source = self._round[stream]
      if row in at:
        self._write_row(writer, at[row], stream, source)
      elif stream in self._own:
        # The stream's next row is ours, so its position after this one must be known: written, and thrown away.
        self._write_row(RowWriter(1, plan.length), 0, stream, source)
      self._advance(stream, source)
    return writer.batch()

  def get_state(self) -> dict[str, Any]:
    # Bytes, as Grain's prefetch copies the state deeply at every batch.
    return {
      "next_row": self._next_row,
      "tokens": tuple(self._tokens),
      "plan": tuple(self._round) if self._next_row % self._plan.streams else (),
      "positions": self._positions.tobytes(),
    }

  def set_state(self, state: dict[str, Any]) -> None:
    self._next_row = state["next_row"]
    self._tokens = list(state["tokens"])
    self._round = list(state["plan"])
    self._positions = np.frombuffer(state["positions"], np.int64).reshape(self._positions.shape).copy()
    self._own = self._plan.own_streams(self._next_row)

  def _own_tokens(self, source: int, stream: int) -> int:
    documents = self._plan.sources[source]
    if documents.splittable:
      return self._plan.length
    window, row = self._positions[stream, source].tolist()
    return sum(len(chunk) for chunk in documents.window(stream, window)[row])

  def _write_row(self, writer: RowWriter, row: int, stream: int, source: int) -> None:
    documents = self._plan.sources[source]
    if not documents.splittable:
      window, number = self._positions[stream, source].tolist()
      for chunk in documents.window(stream, window)[number]:
        document = documents.place(stream, window, chunk.place)
        if len(document):  # else quarantined: its place goes to the filler
          writer.write(row, document, chunk.start, chunk.stop, source)
    filler = source if documents.splittable else self._plan.mixture.filler
    if filler is not None:
      self._fill(writer, row, stream, filler)

  def _fill(self, writer: RowWriter, row: int, stream: int, source: int) -> None:
    """Fills the rest of a row with text, which continues in the stream's next row."""
    documents = self._plan.sources[source]
    number, offset = self._positions[stream, source].tolist()
    missing = 0
    while room := writer.room(row):
      document = documents.document(stream, number)
      missing = missing + 1 if not len(document) else 0
      if missing > len(documents.shards):
        raise DamagedShardError(f"every document of {documents.shards.path} is damaged; build the data again.")
      stop = min(offset + room, len(document))
      if stop > offset:
        writer.write(row, document, offset, stop, source)
      number, offset = (number + 1, 0) if stop == len(document) else (number, stop)
    self._positions[stream, source] = number, offset

  def _advance(self, stream: int, source: int) -> None:
    """Counts a row as read; of text, only its tokens: `_fill` has moved on in it."""
    own = self._own_tokens(source, stream)
    documents = self._plan.sources[source]
    self._tokens[source] += own
    if self._plan.mixture.filler is not None:
      self._tokens[self._plan.mixture.filler] += self._plan.length - own
    if not documents.splittable:
      window, row = self._positions[stream, source].tolist()
      last = row + 1 == len(documents.window(stream, window))
      self._positions[stream, source] = (window + 1, 0) if last else (window, row + 1)
    self._next_row += 1


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

  def get_state(self) -> dict[str, Any]:
    """The position after the last batch handed out, as JSON; of the streams, those of this process."""
    state = self._iterator.get_state()
    positions = self._table(state)
    return {
      "format_version": STATE_VERSION,
      "identity": self._plan.identity,
      "next_row": state["next_row"],
      "tokens": list(state["tokens"]),
      "plan": list(state["plan"]),
      "streams": {str(v): positions[v].tolist() for v in sorted(self._plan.own_streams(state["next_row"]))},
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues from a state, merged with `merge_states` where several processes saved theirs.

    Raises:
      DataError: the state is of other data, or lacks streams.
    """
    _check_state(state, self._plan)
    streams = state["streams"]
    positions = np.array([streams[str(v)] for v in range(self._plan.streams)], np.int64)
    self._iterator.set_state(
      {
        "next_row": state["next_row"],
        "tokens": tuple(state["tokens"]),
        "plan": tuple(state["plan"]),
        "positions": positions.tobytes(),
      }
    )

  def report(self) -> dict[str, Any]:
    """What was read up to the last batch handed out, by all processes together.

    `asked` and `realised` are shares of content tokens per source; `fill` is the share of row tokens that is content; `epochs`
    the largest over this process's streams; `quarantined` the damaged records this process has met.
    """
    state = self._iterator.get_state()
    plan, tokens, next_row = self._plan, state["tokens"], state["next_row"]
    positions = self._table(state)
    own = plan.own_streams(next_row)
    shares = sum(source.share for source in plan.sources)
    return {
      "asked": {source.name: source.share / shares for source in plan.sources},
      "realised": {source.name: n / max(1, sum(tokens)) for source, n in zip(plan.sources, tokens, strict=True)},
      "tokens": {source.name: n for source, n in zip(plan.sources, tokens, strict=True)},
      "fill": sum(tokens) / max(1, next_row * plan.length),
      "epochs": {s.name: max(s.epochs(tuple(positions[v, i].tolist()), v) for v in own) for i, s in enumerate(plan.sources)},
      "quarantined": {source.name: len(source.shards.quarantined) for source in plan.sources},
    }

  def close(self) -> None:
    """Stops reading ahead and closes the files."""
    self._end()

  def _table(self, state: dict[str, Any]) -> npt.NDArray[np.int64]:
    return np.frombuffer(state["positions"], np.int64).reshape(self._plan.streams, len(self._plan.sources), 2)


def _end_reading(reading: list[Any], sources: Sequence[OrderedDocuments]) -> None:
  reading.pop().close()
  for source in sources:
    source.shards.close()


def open_pipeline(data: Data, tokenizer_digest: str, *, rows: Sequence[int], split: str = "train") -> Pipeline:
  """The endless batches of a run.

  Args:
    data: the run's data part.
    tokenizer_digest: `Tokenizer.digest` of the run's tokenizer.
    rows: which rows of the global batch this process holds, in the order of its batches' rows.
    split: the folder of each source to read.

  Raises:
    ConfigError: no source; streams and global batch that do not divide one another; a share that cannot be reached.
    EmptySourceError, TokenizerMismatchError, DamagedShardError, DataError: as `open_shards`.
  """
  if not data.sources:
    raise ConfigError("data.sources is empty; name at least one folder written by `maxagent data build`.")
  outside = [row for row in rows if not 0 <= row < data.global_batch]
  if outside or not rows or len(set(rows)) < len(rows):
    raise ConfigError(f"rows are {list(rows)}; expected different rows of 0 to {data.global_batch - 1}, at least one.")
  sources = tuple(OrderedDocuments(source, open_source(source, data, tokenizer_digest, split), data) for source in data.sources)
  plan = _Plan(sources, _mixture(sources, data), data.sequence_tokens, data.global_batch, tuple(rows), _identity(sources, data))
  return Pipeline(plan, prefetch_batches=data.prefetch_batches)


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The state of all processes: the union of their streams.

  Raises:
    DataError: the states are not of one moment of one run.
  """
  first, streams = states[0], dict[str, Any]()
  for state in states:
    different = [key for key in first if key != "streams" and state.get(key) != first[key]]
    different += [f"stream {v}" for v, position in state["streams"].items() if streams.get(v, position) != position]
    if different:
      raise DataError(
        f"data states differ in {', '.join(different)}; merge states that processes saved at one step of one run."
      )
    streams |= state["streams"]
  return first | {"streams": {v: streams[v] for v in sorted(streams, key=int)}}


def _mixture(sources: Sequence[OrderedDocuments], data: Data) -> Mixture:
  streams = {source.name: source.shards.index.streams for source in sources}
  if len(set(streams.values())) > 1:
    raise ConfigError(f"sources were built with different numbers of streams, {streams}; build them with one --streams.")
  count, batch = next(iter(streams.values())), data.global_batch
  if count % batch and batch % count:
    raise ConfigError(
      f"data.global_batch is {batch} and the shards have {count} streams; one must divide the other. "
      "Change the batch, or build the data again with another --streams."
    )
  parts = [Part(name=s.name, share=s.share, splittable=s.splittable, fill=s.mean_fill()) for s in sources]
  return make_mixture(parts, streams=count, row_tokens=data.sequence_tokens)


def _identity(sources: Sequence[OrderedDocuments], data: Data) -> dict[str, Any]:
  """What must be equal for positions to mean the same rows."""
  return {
    "sequence_tokens": data.sequence_tokens,
    "packing_window": data.packing_window,
    "seed": data.seed,
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
  missing = [v for v in range(plan.streams) if str(v) not in state["streams"]]
  if missing or len(state["streams"]) > plan.streams:
    raise DataError(
      f"data state holds {len(state['streams'])} streams of {plan.streams}; merge those of all processes (merge_states)."
    )
