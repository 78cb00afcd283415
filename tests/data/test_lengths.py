"""Rows that become longer in a run (`data.lengths`)."""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from maxagent.config.schema import Config, Data, Formats, Model, Source, Training
from maxagent.data.batch import FIELD_DTYPES, Batch
from maxagent.data.pipeline import Pipeline
from maxagent.data.shards import open_shards
from maxagent.errors import ConfigError

MakeSource = Callable[..., Source]
MakeData = Callable[..., Data]
Pipelines = Callable[..., Pipeline]
LENGTHS = ((2600.0, 64), (9000.0, 256))  # after rows of 32 tokens
STREAMS = 16


@pytest.fixture(scope="session")
def growing(make_source: MakeSource, make_data: MakeData) -> Callable[..., Data]:
  """Data of steps of 256 tokens: 8 rows of 32, then 4 of 64, then 1 of 256; some documents are longer than some rows."""
  rng = np.random.default_rng(0)
  web = make_source("web", rng.integers(2, 150, 60).tolist(), streams=STREAMS, share=0.6)
  lengths = np.clip(rng.lognormal(np.log(12), 0.8, 300), 2, 150).astype(int).tolist()
  traces = [make_source(name, lengths, kind="trace", streams=STREAMS, share=0.2) for name in ("a", "b")]

  def make(**fields: object) -> Data:
    return make_data(web, *traces, **({"global_batch": 8, "lengths": LENGTHS} | fields))

  return make


def rows_of(pipeline: Pipeline, steps: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """(number, fields) of every row of the stream."""
  number = 0
  for _ in range(steps):
    batch = next(pipeline)
    for row in range(len(batch.tokens)):
      yield number, {name: np.array(getattr(batch, name)[row]) for name in FIELD_DTYPES}
      number += 1


def stored(batch: Batch) -> list[bytes]:
  return [getattr(batch, name).tobytes() for name in FIELD_DTYPES]


def read_by_position(pipeline: Pipeline, positions: list[list[list[int]]]) -> list[collections.Counter[int]]:
  """The tokens that each stream has read if its positions are true."""
  counts: list[collections.Counter[int]] = [collections.Counter() for _ in positions]
  for number, source in enumerate(pipeline._plan.sources):
    for stream, row in enumerate(positions):
      first, second, phase = row[number]
      for n in range(first):
        counts[stream].update(source.shards[source._record(stream, n)[0]].ids.tolist())
      bins = source._packed_window(stream, first, phase).bins[:second] if not source.splittable and second else []
      spans = [(piece.document, piece.start, piece.stop) for pieces in bins for piece in pieces]
      for n, start, stop in [(first, 0, second)] if source.splittable else spans:
        counts[stream].update(source.shards[source._record(stream, n)[0]].ids[start:stop].tolist())
  return counts


@pytest.mark.parametrize("lengths", [(), LENGTHS])
def test_every_token_before_the_positions_is_read_once_per_pass_and_none_behind_them(
  growing: Callable[..., Data], pipelines: Pipelines, lengths: tuple[tuple[float, int], ...]
) -> None:
  pipeline = pipelines(growing(lengths=lengths))
  seen: list[collections.Counter[int]] = [collections.Counter() for _ in range(STREAMS)]
  for number, row in rows_of(pipeline, 150):
    seen[number % STREAMS].update(row["tokens"][row["segments"] > 0].tolist())
  state = pipeline.get_state()
  assert seen == read_by_position(pipeline, state["positions"])
  assert min(pipeline.report()["epochs"].values()) > 1  # the check has seen whole passes
  assert state["phase"] == len(lengths)


def test_a_pass_holds_the_same_tokens_with_and_without_a_switch(
  make_source: MakeSource, make_data: MakeData, pipelines: Pipelines
) -> None:
  # One stream and windows of the whole source: after each pass every token has come equally often.
  source = make_source("t", [7, 30, 12, 80, 25, 9, 31, 3] * 2, kind="trace", streams=1)
  whole = collections.Counter(token for d in documents(source) for token in d)
  for lengths in ((), ((200.0, 128),)):
    pipeline = pipelines(make_data(source, packing_window=16, lengths=lengths))
    seen: collections.Counter[int] = collections.Counter()
    for _, row in rows_of(pipeline, 5 if lengths else 4):
      seen.update(row["tokens"][row["segments"] > 0].tolist())
      if sum(seen.values()) == sum(whole.values()):
        break
    assert seen == whole
    assert len(row["tokens"]) == (128 if lengths else 32)


def documents(source: Source) -> list[list[int]]:
  shards = open_shards(pathlib.Path(source.path) / "train")
  return [shards[n].ids.tolist() for n in range(len(shards))]


def test_rows_become_longer_with_the_first_step_at_whose_begin_enough_was_read(
  growing: Callable[..., Data], pipelines: Pipelines
) -> None:
  pipeline = pipelines(growing())
  read, shapes = 0, set()
  for _ in range(80):
    batch = next(pipeline)
    expected = (8, 32) if read < 2600 else (4, 64) if read < 9000 else (1, 256)
    assert batch.tokens.shape == expected
    shapes.add(expected)
    read += int((batch.segments > 0).sum())
  assert len(shapes) == 3
  assert pipeline.report()["fill"] >= 0.995


def test_a_window_that_shorter_rows_began_ends_in_as_many_of_its_bins_as_a_longer_row_holds_and_the_next_is_whole(
  growing: Callable[..., Data], pipelines: Pipelines
) -> None:
  data = growing(packing_window=32, lengths=((2600.0, 256),))  # every trace fits into 256 tokens
  pipeline = pipelines(data)
  sizes = {d[0]: len(d) for source in data.sources[:2] for d in documents(source)}
  old, new = 0, 0
  before, batch = pipeline.get_state(), next(pipeline)
  for _ in range(130):
    after = pipeline.get_state()
    if len(batch.tokens) == 1 and (own := batch.sources[0][0]) < 2:
      stream = before["next_row"] % STREAMS
      (first, read, phase), (next_first, next_read, next_phase) = (s["positions"][stream][own] for s in (before, after))
      segments, tokens = batch.segments[0], batch.tokens[0]
      firsts = {n: int(tokens[segments == n][0]) for n in np.unique(segments) if tokens[segments == n][0] in sizes}
      if read and phase == 0:
        old += 1
        assert next_first > first or (next_read >= read + 8 and next_phase == 0)
      else:
        new += 1
        assert all(int((segments == n).sum()) == sizes[token] for n, token in firsts.items() if batch.sources[0][0] == own)
    before, batch = after, next(pipeline)
  assert old > 5 and new > 5


@pytest.mark.parametrize("prefetch", [1, 5])
def test_a_state_from_before_at_or_after_a_switch_goes_on_with_the_same_bytes(
  growing: Callable[..., Data], pipelines: Pipelines, prefetch: int
) -> None:
  data = growing(formats=Formats(), prefetch_batches=prefetch)
  pipeline = pipelines(data)
  states, whole = [pipeline.get_state()], []
  for _ in range(55):
    whole.append(stored(next(pipeline)))
    states.append(json.loads(json.dumps(pipeline.get_state())))
  switches = [n for n in range(55) if states[n]["phase"] != states[n + 1]["phase"]]
  assert len(switches) == 2
  assert any(states[n]["next_row"] % STREAMS for n in switches)  # in the middle of a round
  for switch in switches:
    for step in (switch - 1, switch, switch + 1):
      resumed = pipelines(data)
      resumed.set_state(states[step])
      assert [stored(next(resumed)) for _ in range(6)] == whole[step : step + 6]
      assert resumed.get_state() == states[step + 6]


def test_shares_keep_their_promise_when_rows_become_longer(growing: Callable[..., Data], pipelines: Pipelines) -> None:
  pipeline = pipelines(growing())
  counts = np.zeros(3)
  for _, row in rows_of(pipeline, 200):
    counts += np.bincount(row["sources"][row["segments"] > 0], minlength=3)
    error = np.abs(counts - counts.sum() * np.array([0.2, 0.2, 0.6])).max()
    assert error <= 2 * len(row["tokens"]) + 0.001 * counts.sum()


@pytest.mark.parametrize(
  ("lengths", "message"),
  [
    (((0.0, 64),), "growing numbers of tokens above 0"),
    (((2e9, 64), (1e9, 128)), "growing numbers"),
    (((1e9, 48),), "a multiple of 32, the length before it, that divides the 8 x 32 tokens of a step"),
    (((1e9, 32),), "a multiple of 32"),
    (((1e9, 128), (2e9, 64)), "a multiple of 128"),
    (((1e9, 512),), "divides the 8 x 32"),
  ],
)
def test_lengths_that_cannot_be_are_refused(make_data: MakeData, lengths: object, message: str) -> None:
  with pytest.raises(ConfigError, match=message):
    make_data(Source(name="a", path="x"), global_batch=8, lengths=lengths)


def test_microbatches_that_do_not_divide_longer_rows_are_refused_where_the_run_reaches_them(make_data: MakeData) -> None:
  data = make_data(Source(name="a", path="x"), global_batch=8, lengths=((25_600.0, 128),))
  with pytest.raises(ConfigError, match=r"microbatches is 4; expected a divisor of the 2 rows of 128 tokens"):
    Config(data=data, model=Model(), training=Training(microbatches=4))
  config = Config(data=data, training=Training(microbatches=4, steps=100), schedule=Config().schedule)
  assert config.shapes == ((0.0, 8, 32),)


def test_rows_and_streams_that_do_not_divide_are_refused_for_every_length(
  make_source: MakeSource, make_data: MakeData, pipelines: Pipelines
) -> None:
  source = make_source("w", [9] * 9, streams=4)
  with pytest.raises(ConfigError, match=r"data.lengths gives a step 6 rows of 64 tokens and the shards have 4 streams"):
    pipelines(make_data(source, global_batch=12, lengths=((100.0, 64),)))
