from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxagent.config.schema import Data, Source
from maxagent.data.batch import FIELD_DTYPES, Batch
from maxagent.data.pipeline import Pipeline, heldout_batches, open_pipeline
from maxagent.data.shards import open_shards
from maxagent.errors import ConfigError, DamagedShardError, DataError, EmptySourceError, TokenizerMismatchError
from maxagent.traces.schema import Flag, Role

pytestmark = pytest.mark.smoke

MakeSource = Callable[..., Source]
MakeData = Callable[..., Data]


@pytest.fixture(scope="session")
def mixed(make_source: MakeSource) -> tuple[Source, Source]:
  rng = np.random.default_rng(0)
  web = make_source("web", rng.integers(2, 90, 30).tolist())
  return web, make_source("trace", rng.integers(2, 45, 50).tolist(), kind="trace")


def take(pipeline: Pipeline, count: int) -> list[dict[str, np.ndarray]]:
  return [fields(next(pipeline)) for _ in range(count)]


def fields(batch: Batch) -> dict[str, np.ndarray]:
  return {name: np.array(getattr(batch, name)) for name in FIELD_DTYPES}


def assert_same(left: Sequence[dict[str, np.ndarray]], right: Sequence[dict[str, np.ndarray]]) -> None:
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    for name in FIELD_DTYPES:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def documents_by_token(source: Source) -> dict[int, np.ndarray]:
  """The ids of the document that each token id of a source belongs to."""
  shards = open_shards(pathlib.Path(source.path) / "train")
  return {token: shards[n].ids for n in range(len(shards)) for token in shards[n].ids.tolist()}


@given(
  st.lists(st.integers(2, 70), min_size=1, max_size=12),
  st.lists(st.integers(2, 70), min_size=1, max_size=12),
  st.sampled_from([1, 2, 4, 8]),
)
@settings(deadline=None, max_examples=15)
def test_every_token_but_the_first_is_a_target_once_per_pass_across_row_cuts(
  make_source: MakeSource, make_data: MakeData, digest: str, web: list[int], trace: list[int], batch: int
) -> None:
  # Traces well under their largest share, so that any fill can be filled up.
  sources = make_source("web", web, share=8), make_source("trace", trace, kind="trace")
  owners = documents_by_token(sources[0]) | documents_by_token(sources[1])
  pipeline = open_pipeline(make_data(*sources, global_batch=batch), digest, rows=range(batch))
  seen: list[dict[int, list[int]]] = [collections.defaultdict(list) for _ in range(4)]
  inputs: list[dict[int, int]] = [collections.Counter() for _ in range(4)]
  row = 0
  for _ in range(160 // batch):
    got = fields(next(pipeline))
    for r in range(batch):
      for token, target, role in zip(got["tokens"][r], got["targets"][r], got["roles"][r], strict=True):
        inputs[row % 4][int(token)] += 1
        if role != Role.PAD:
          seen[row % 4][int(token)].append(int(target))
      row += 1
  pipeline.close()
  for stream in range(4):
    for token, count in inputs[stream].items():
      if token:
        ids = owners[token]
        place = token - int(ids[0])
        expected = [] if place == len(ids) - 1 else [int(ids[place + 1])] * count
        assert seen[stream][token] == expected
    # A document is begun anew only when it was ended: within a pass nothing is left out and nothing comes twice.
    for token, count in inputs[stream].items():
      if token and token != int(owners[token][0]):
        assert inputs[stream][token - 1] - count in (0, 1)


def test_batches_are_as_the_batch_documents_them(
  mixed: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  data = make_data(*mixed)
  owners = documents_by_token(mixed[0]) | documents_by_token(mixed[1])
  web = set(documents_by_token(mixed[0]))
  for got in take(pipelines(data), 30):
    for name, dtype in FIELD_DTYPES.items():
      assert got[name].dtype == dtype and got[name].shape == (4, 32)
    for row in range(4):
      tokens, segments = got["tokens"][row], got["segments"][row]
      assert (np.diff(segments) >= 0).all() and segments[0] == 1 and set(np.diff(segments)) <= {0, 1}
      for i, token in enumerate(tokens.tolist()):
        ids = owners[token]
        position = token - int(ids[0])
        assert got["positions"][row, i] == position
        assert got["sources"][row, i] == (1 if token in web else 0)  # by name: trace, web
        last = position == len(ids) - 1
        assert got["targets"][row, i] == (0 if last else token + 1)
        next_last = position == len(ids) - 2
        expected = Role.PAD if last else Role.MARKER if next_last else Role.WEB if token in web else Role.OBS
        assert got["roles"][row, i] == expected
        start = position - int((segments[:i] == segments[i]).sum())
        assert got["flags"][row, i] == (Flag.CONTINUED if start and not last else 0)
        assert got["statuses"][row, i] == (1 if token not in web and not last else 0)


def test_traces_that_fit_are_never_cut(
  mixed: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  owners = documents_by_token(mixed[1])
  data = make_data(*mixed)
  for got in take(pipelines(data), 30):
    for token, position, segment, row in zip(
      *(got[n].ravel() for n in ("tokens", "positions", "segments")), np.repeat(range(4), 32), strict=True
    ):
      if token in owners and len(owners[token]) <= 32 and position == 0:
        assert (got["segments"][row] == segment).sum() == len(owners[token])


def test_rows_are_full_where_text_fills_the_gaps(
  mixed: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  pipeline = pipelines(make_data(*mixed))
  assert all((got["segments"] > 0).all() for got in take(pipeline, 40))
  assert pipeline.report()["fill"] == 1


def test_gaps_are_padding_where_there_is_no_text(
  mixed: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  pipeline = pipelines(make_data(mixed[1]))
  batches = take(pipeline, 20)
  padding = np.concatenate([got["segments"] for got in batches]) == 0
  assert 0 < padding.mean() < 0.5
  for got in batches:
    gap = got["segments"] == 0
    assert (got["roles"][gap] == Role.PAD).all() and not got["tokens"][gap].any() and not got["targets"][gap].any()
  assert pipeline.report()["fill"] == pytest.approx(1 - padding.mean())


@pytest.mark.parametrize("prefetch", [1, 2, 7])
@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_a_state_after_any_batch_continues_with_the_byte_identical_next_batches(
  mixed: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline], batch: int, prefetch: int
) -> None:
  data = make_data(*mixed, global_batch=batch, prefetch_batches=prefetch)
  whole = take(pipelines(data), 24)
  first = pipelines(data)
  for k in range(0, 18, 3):
    state = json.loads(json.dumps(first.get_state()))
    resumed = pipelines(make_data(*mixed, global_batch=batch, prefetch_batches=3))
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert_same(take(resumed, 5), whole[k : k + 5])
    take(first, 3)
  first.set_state(state)
  assert_same(take(first, 5), whole[15:20])


@pytest.mark.parametrize("batch", [4, 8])
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("dealt", ["blocks", "stripes", "copies"])
def test_processes_together_write_the_stream_of_one(
  mixed: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline], batch: int, processes: int, dealt: str
) -> None:
  data = make_data(*mixed, global_batch=batch)
  rows = {
    "blocks": [list(range(p * batch // processes, (p + 1) * batch // processes)) for p in range(processes)],
    "stripes": [list(range(p, batch, processes)) for p in range(processes)],
    "copies": [list(range(batch))[::-1] for _ in range(processes)],
  }[dealt]
  whole = take(pipelines(data), 12)
  for own in rows:
    assert_same(take(pipelines(data, own), 12), [{name: field[own] for name, field in got.items()} for got in whole])


@pytest.mark.parametrize("batch", [4, 8])
@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 1), (2, 4), (4, 2), (4, 1)])
def test_the_state_of_any_of_many_processes_continues_on_any_other_number(
  mixed: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline], batch: int, before: int, after: int
) -> None:
  data = make_data(*mixed, global_batch=batch)
  whole = take(pipelines(data), 12)
  states = []
  for p in range(before):
    pipeline = pipelines(data, range(p, batch, before))
    take(pipeline, 7)
    states.append(json.loads(json.dumps(pipeline.get_state())))
  assert all(state == states[0] for state in states)
  for p in range(after):
    own = list(range(p, batch, after))
    pipeline = pipelines(data, own)
    pipeline.set_state(states[-1])
    assert_same(take(pipeline, 5), [{name: field[own] for name, field in got.items()} for got in whole[7:]])


def test_a_state_of_another_number_of_streams_is_refused(
  mixed: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  data = make_data(*mixed)
  state = pipelines(data).get_state()
  with pytest.raises(DataError, match="holds 3 streams; the shards have 4"):
    pipelines(data).set_state(state | {"positions": state["positions"][:3]})


@pytest.mark.parametrize(("field", "value"), [("sequence_tokens", 64), ("packing_window", 4), ("seed", 1)])
def test_a_state_of_other_data_is_refused_by_name(
  mixed: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline], field: str, value: int
) -> None:
  state = pipelines(make_data(*mixed)).get_state()
  with pytest.raises(DataError, match=f"another {field}"):
    pipelines(make_data(*mixed, **{field: value})).set_state(state)


def test_the_state_stays_under_64_kb_at_256_streams_late_in_a_long_run(
  make_source: MakeSource, make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  sources = [
    make_source(name, [40] * 20, streams=256, kind=kind) for name, kind in (("code", "web"), ("web", "web"), ("t", "trace"))
  ]
  pipeline = pipelines(make_data(*sources, global_batch=256))
  next(pipeline)
  state = pipeline.get_state()
  state["positions"] = [[[987_654_321, 16_383, 0], [987_654_321, 16_383, 0], [987_654_321, 163, 2]]] * 256
  state |= {"step": 10**9, "next_row": 10**12, "tokens": [10**16] * 3, "plan": [2] * 256}
  assert len(json.dumps(state)) <= 64_000
  pipeline.set_state(state)


def test_the_state_holds_positions_and_no_tokens(
  mixed: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  pipeline = pipelines(make_data(*mixed))
  sizes = []
  for _ in range(20):
    next(pipeline)
    sizes.append(len(json.dumps(pipeline.get_state())))
  assert max(sizes) - min(sizes) < 60


def test_the_report_counts_what_the_batches_hold(
  mixed: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  pipeline = pipelines(make_data(*mixed))
  counts = np.zeros(2, int)
  for got in take(pipeline, 50):
    counts += np.bincount(got["sources"][got["segments"] > 0], minlength=2)
  report = pipeline.report()
  assert report["tokens"] == {"trace": counts[0], "web": counts[1]}
  assert report["asked"] == {"trace": 0.5, "web": 0.5}
  assert report["realised"]["trace"] == pytest.approx(counts[0] / counts.sum())
  assert report["epochs"]["web"] > 1


def test_log_normal_traces_reach_their_share_within_two_rows_at_every_batch(
  make_source: MakeSource, make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  rng = np.random.default_rng(1)
  lengths = np.clip(rng.lognormal(np.log(0.3 * 128), 0.8, 400), 2, 2000).astype(int).tolist()
  web = make_source("web", rng.integers(20, 900, 60).tolist(), streams=16, share=0.4)
  trace = make_source("trace", lengths, kind="trace", streams=16, share=0.6)
  pipeline = pipelines(make_data(web, trace, sequence_tokens=128, global_batch=8, packing_window=64))
  got, rows = 0, 0
  for batch in take(pipeline, 250):
    for row in range(8):
      got += int(((batch["sources"][row] == 0) & (batch["segments"][row] > 0)).sum())
      rows += 1
      assert abs(got / 128 - 0.6 * rows) <= 2 + 0.001 * rows


def test_another_seed_gives_another_order_of_the_same_documents(
  mixed: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  first, second = (take(pipelines(make_data(*mixed, seed=seed)), 3) for seed in (0, 1))
  assert any((a["tokens"] != b["tokens"]).any() for a, b in zip(first, second, strict=True))


@pytest.fixture
def damaged(make_source: MakeSource, damage_record: Callable[[pathlib.Path, int], object]) -> tuple[Source, Source]:
  web = make_source("web", [40, 30, 70, 33, 20, 90, 11, 50] * 2)
  trace = make_source("trace", [20, 11, 16, 40, 9, 25, 75, 13] * 2, kind="trace")
  for source in (web, trace):
    for document in (0, 5, 10):
      damage_record(pathlib.Path(source.path) / "train", document)
  return web, trace


def test_damage_stops_the_run_by_default_and_says_where(
  damaged: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  with pytest.raises(DamagedShardError, match=r"tokens-0000\d\.array_record, record \d+: .*data\.on_damage=quarantine"):
    pipelines(make_data(*damaged))


def test_quarantine_goes_on_without_the_damaged_and_resumes_exactly(
  damaged: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  data = make_data(*damaged, on_damage="quarantine")
  pipeline = pipelines(data)
  whole = take(pipeline, 5)
  state = pipeline.get_state()
  whole += take(pipeline, 15)
  assert 0 < np.mean([(got["segments"] == 0).mean() for got in whole]) < 0.3  # their places stay padding
  assert pipeline.report()["quarantined"] == {"trace": 3, "web": 3}
  resumed = pipelines(data)
  resumed.set_state(state)
  assert_same(take(resumed, 15), whole[5:])
  assert_same(take(pipelines(data, [1, 3]), 20), [{name: field[[1, 3]] for name, field in got.items()} for got in whole])


def test_damage_met_while_reading_ahead_reaches_the_caller(
  damaged: tuple[Source, Source], make_data: MakeData, pipelines: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr("maxagent.data.shards.FULL_CHECK_BYTES", 0)
  pipeline = pipelines(make_data(*damaged))
  with pytest.raises(DamagedShardError, match="record"):
    take(pipeline, 40)


def test_wrong_data_is_refused_by_name(
  mixed: tuple[Source, Source], make_source: MakeSource, make_data: MakeData, digest: str
) -> None:
  with pytest.raises(ConfigError, match="sources is empty"):
    open_pipeline(make_data(), digest, rows=[0])
  with pytest.raises(ConfigError, match=r"global_batch is 6 and the shards have 4 streams"):
    open_pipeline(make_data(*mixed, global_batch=6), digest, rows=[0])
  with pytest.raises(ConfigError, match=r"expected different rows of 0 to 3"):
    open_pipeline(make_data(*mixed), digest, rows=[4])
  with pytest.raises(ConfigError, match=r"different numbers of streams"):
    open_pipeline(make_data(mixed[0], make_source("other", [9], streams=8)), digest, rows=[0])
  with pytest.raises(ConfigError, match=r"trace are asked to be 99.*at most"):
    open_pipeline(make_data(make_source("w", [9]), make_source("trace", [20, 22], kind="trace", share=99)), digest, rows=[0])
  with pytest.raises(EmptySourceError, match=r"source 'none'.*holds no document"):
    open_pipeline(make_data(make_source("none", [])), digest, rows=[0])
  with pytest.raises(TokenizerMismatchError, match="was encoded with tokenizer"):
    open_pipeline(make_data(*mixed), "other", rows=[0])
  with pytest.raises(DataError, match="does not exist"):
    open_pipeline(make_data(Source(name="web", path="nowhere")), digest, rows=[0])


def test_a_closed_pipeline_says_so(mixed: tuple[Source, Source], make_data: MakeData, digest: str) -> None:
  pipeline = open_pipeline(make_data(*mixed), digest, rows=range(4))
  next(pipeline)
  pipeline.close()
  pipeline.close()
  with pytest.raises(DataError, match="closed"):
    next(pipeline)


@pytest.mark.parametrize("source", ["web", "trace"])
def test_heldout_batches_hold_each_document_once_in_order(
  mixed: tuple[Source, Source], make_data: MakeData, digest: str, source: str
) -> None:
  data = make_data(*mixed)
  shards = open_shards(pathlib.Path(mixed[source == "trace"].path) / "heldout")
  batches = [fields(batch) for batch in heldout_batches(data, digest, source, 1000, range(4))]
  tokens = np.concatenate([got["tokens"][got["segments"] > 0] for got in batches])
  np.testing.assert_array_equal(tokens, np.concatenate([shards[n].ids for n in range(len(shards))]))
  assert {int(s) for got in batches for s in np.unique(got["sources"][got["segments"] > 0])} == {0 if source == "trace" else 1}
  assert len(heldout_batches(data, digest, source, 2, range(4))) == 2


def test_heldout_batches_give_each_process_its_rows(mixed: tuple[Source, Source], make_data: MakeData, digest: str) -> None:
  data = make_data(*mixed)
  whole = [fields(batch) for batch in heldout_batches(data, digest, "web", 3, range(4))]
  part = [fields(batch) for batch in heldout_batches(data, digest, "web", 3, [3, 1])]
  assert_same(part, [{name: field[[3, 1]] for name, field in got.items()} for got in whole])


def test_heldout_batches_of_no_such_source_or_nothing_held_out_are_refused(
  make_source: MakeSource, make_data: MakeData, digest: str
) -> None:
  data = make_data(make_source("none", []))
  with pytest.raises(EmptySourceError, match="--heldout"):
    heldout_batches(data, digest, "none", 1, range(4))
  with pytest.raises(ConfigError, match="'web' is no source"):
    heldout_batches(data, digest, "web", 1, range(4))


def test_a_source_is_read_no_more_often_than_it_may_be_and_the_run_says_when_nothing_is_left(
  make_source: MakeSource, make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  web, code = (make_source(name, [40] * 24, share=share) for name, share in (("web", 1.0), ("code", 3.0)))
  capped = dataclasses.replace(code, max_epochs=1.0)
  pipeline = pipelines(make_data(web, capped))
  take(pipeline, 60)
  report = pipeline.report()
  assert report["spent"] == {"code": 1, "web": 0}
  assert 1 <= report["epochs"]["code"] < 1.5 < report["epochs"]["web"]
  state = json.loads(json.dumps(pipeline.get_state()))
  resumed = pipelines(make_data(web, capped))
  resumed.set_state(state)
  assert_same(take(resumed, 5), take(pipeline, 5))
  pipeline = pipelines(make_data(dataclasses.replace(web, max_epochs=1.0), capped))
  with pytest.raises(EmptySourceError, match=r"max_epochs allows"):
    take(pipeline, 100)


def test_the_shares_of_a_run_follow_its_schedule(
  make_source: MakeSource, make_data: MakeData, pipelines: Callable[..., Pipeline]
) -> None:
  sources = [make_source(name, [40] * 24) for name in ("a", "b")]
  schedule = ((0.0, (("a", 1.0),)), (6400.0, (("a", 1.0), ("b", 3.0))))
  pipeline = pipelines(make_data(*sources, schedule=schedule))
  take(pipeline, 50)
  assert pipeline.report()["realised"] == {"a": 1, "b": 0}
  take(pipeline, 100)
  report = pipeline.report()
  assert report["asked"] == pytest.approx({"a": 0.5, "b": 0.5})
  assert report["realised"]["a"] == pytest.approx(0.5, abs=2 * 32 / 19200 + 0.001)


@pytest.mark.parametrize(
  ("schedule", "message"),
  [
    (((5.0, (("a", 1.0),)),), "first at 0"),
    (((0.0, (("z", 1.0),)),), "a source, one of a"),
    (((0.0, (("a", 0.0),)),), "share above 0"),
  ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(schedule: object, message: str, make_data: MakeData) -> None:
  with pytest.raises(ConfigError, match=message):
    make_data(Source(name="a", path="x"), schedule=schedule)
