"""Any number of hosts reads one stream, saved on some and resumed on others; hosts are pipelines of this process here."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from maxagent.config.schema import Data, Formats, Source
from maxagent.data.batch import FIELD_DTYPES
from maxagent.data.document import Document
from maxagent.data.pipeline import Pipeline, open_pipeline
from maxagent.data.shards import ShardWriter
from maxagent.traces.schema import RESERVED, Flag, Role, Status

HOSTS = (1, 2, 4, 8)
STREAMS, FIRST_RESERVED = 256, 1000
SAVED, AFTER = 11, 14  # steps before the save and after it; rows become longer and shares change on either side
Stream = list[list[bytes]]  # all fields of every row, in order of the rows


def trace(rng: np.random.Generator, calls: int) -> Document:
  """Goal, plan and `calls` calls, of which every third fails; what the formats cut at is there."""
  ids, roles, statuses = [marker("bos")], [int(Role.MARKER)], [int(Status.NA)]
  segments = [("goal", Role.GOAL, 4), ("plan", Role.PLAN, 5)]
  segments += [pair for _ in range(calls) for pair in (("call", Role.CALL, 6), ("obs", Role.OBS, 3))] + [
    ("answer", Role.ANSWER, 2)
  ]
  for n, (name, role, words) in enumerate(segments):
    text = rng.integers(0, FIRST_RESERVED, words).tolist()
    if name == "call":
      text[2] = marker("args")
    ids += [marker(name), *text, marker("end")]
    roles += [int(role)] * (words + 2)
    statuses += [int(Status.ERR if role in (Role.CALL, Role.OBS) and n % 6 < 2 else Status.NA)] * (words + 2)
  return Document(
    np.array(ids, np.int32), np.array(roles, np.uint8), np.array(statuses, np.uint8), np.zeros(len(ids), np.uint8)
  )


def text(rng: np.random.Generator, tokens: int) -> Document:
  ids = rng.integers(0, FIRST_RESERVED, tokens).astype(np.int32)
  return Document(ids, *(np.full(tokens, kind, np.uint8) for kind in (Role.WEB, Status.NA, 0)))


def marker(name: str) -> int:
  return FIRST_RESERVED + RESERVED.index(name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
  """Two sources of traces and two of text, all formats, a schedule, rows of 64 and then of 256 tokens, 1,024 tokens a step."""
  folder, rng = tmp_path_factory.mktemp("elastic"), np.random.default_rng(0)
  for name in ("books", "chats", "tools", "web"):
    kind = "trace" if name in ("chats", "tools") else "web"
    writer = ShardWriter(
      folder / name / "train", kind=kind, tokenizer_digest="t", vocab_size=1064, first_reserved=FIRST_RESERVED, streams=STREAMS
    )
    for _ in range(400):
      document = trace(rng, int(rng.integers(1, 12))) if kind == "trace" else text(rng, int(rng.integers(20, 200)))
      writer.add(document, 4 * len(document))
    writer.close({})
  shares = (
    (("books", 0.5), ("chats", 0.1), ("tools", 0.1), ("web", 0.3)),
    (("books", 0.4), ("chats", 0.3), ("tools", 0.1), ("web", 0.2)),
  )
  return Data(
    sources=tuple(Source(name=name, path=str(folder / name)) for name in ("books", "chats", "tools", "web")),
    schedule=((0.0, shares[0]), (9000.0, shares[1])),
    lengths=((16_000.0, 256),),
    sequence_tokens=64,
    global_batch=16,
    packing_window=8,
    formats=Formats(infill=0.3, fim=0.3, decision=0.2),
  )  # fmt: skip


@pytest.fixture(scope="module")
def hosts(data: Data) -> Iterator[Callable[[int], list[Pipeline]]]:
  """So many hosts, each with every n-th row (some with blocks of rows) and reading ahead by 1, 2 or 8 batches."""

  def held(count: int, host: int, rows: int) -> list[int]:
    # A host without a row of its own reads one that another reads too, as on a mesh that cuts rows along their length.
    mine = list(range(host, rows, count)) if count == 4 else list(range(host * rows // count, (host + 1) * rows // count))
    return mine or [host * rows // count]

  @functools.cache
  def opened(count: int) -> list[Pipeline]:
    return [
      open_pipeline(
        dataclasses.replace(data, prefetch_batches=(1, 2, 8)[(host + count) % 3]),
        "t",
        rows=functools.partial(held, count, host),
      )
      for host in range(count)
    ]

  yield opened
  for count in HOSTS:
    for pipeline in opened(count):
      pipeline.close()


def read(pipelines: list[Pipeline], steps: int) -> Stream:
  """The global stream of some steps; rows that two hosts hold are compared."""
  stream: Stream = []
  for _ in range(steps):
    rows: dict[int, list[bytes]] = {}
    for pipeline in pipelines:
      batch = next(pipeline)
      count = 1024 // batch.tokens.shape[1]
      for i, row in enumerate(pipeline._plan.held(count)):
        own = [getattr(batch, name)[i].tobytes() for name in FIELD_DTYPES]
        assert rows.setdefault(row, own) == own
    assert sorted(rows) == list(range(count))
    stream += [rows[row] for row in range(count)]
  return stream


def saved(pipelines: list[Pipeline]) -> dict[str, Any]:
  """The state, which all hosts must have in common."""
  states = [json.dumps(pipeline.get_state()) for pipeline in pipelines]
  assert len(set(states)) == 1 and len(states[0]) <= 64_000
  state: dict[str, Any] = json.loads(states[0])
  return state


@pytest.fixture(scope="module")
def whole(data: Data) -> Stream:
  """What one process reads without a stop."""
  pipeline = open_pipeline(data, "t", rows=range)
  stream = read([pipeline], SAVED + AFTER)
  assert pipeline.phase == 1 and len(stream) < 16 * (SAVED + AFTER)  # it ends in longer rows
  pipeline.close()
  return stream


@pytest.mark.parametrize("after", HOSTS)
@pytest.mark.parametrize("before", HOSTS)
def test_saved_on_some_hosts_and_resumed_on_others_the_stream_is_byte_identical(
  data: Data, hosts: Callable[[int], list[Pipeline]], whole: Stream, before: int, after: int
) -> None:
  fresh = open_pipeline(data, "t", rows=range)
  start = fresh.get_state()
  fresh.close()
  for pipeline in hosts(before):
    pipeline.set_state(start)
  assert read(hosts(before), SAVED) == whole[: 16 * SAVED]
  state = saved(hosts(before))
  for pipeline in hosts(after):
    pipeline.set_state(state)
  assert read(hosts(after), AFTER) == whole[16 * SAVED :]
  saved(hosts(after))


def test_the_stream_above_holds_every_format_and_every_source(whole: Stream) -> None:
  def found(name: str) -> set[int]:
    return {int(i) for row in whole for i in np.unique(np.frombuffer(row[list(FIELD_DTYPES).index(name)], FIELD_DTYPES[name]))}

  assert {marker("fim_pre"), marker("choose")} <= found("tokens")
  assert all(any(flags & flag for flags in found("flags")) for flag in (Flag.HOLE, Flag.DECISION, Flag.ADDED, Flag.CONTINUED))
  assert found("sources") == {0, 1, 2, 3}
