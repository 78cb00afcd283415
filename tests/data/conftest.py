from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from maxagent.config.schema import Data, Formats, Source
from maxagent.data import shards
from maxagent.data.document import Document
from maxagent.data.pipeline import Pipeline, Rows, open_pipeline
from maxagent.data.shards import ShardWriter
from maxagent.tokenizer import Tokenizer, train
from maxagent.traces.schema import Role, Segment, Status, Trace

DIGEST = "0123456789abcdef" * 2
MakeSource = Callable[..., Source]
MakeData = Callable[..., Data]


@pytest.fixture(scope="session")
def make_source(tmp_path_factory: pytest.TempPathFactory) -> MakeSource:
  """Writes a source whose documents have the given lengths. Ids count up and never repeat, so a token names its document."""
  ids = itertools.count(1)

  def document(length: int, kind: str) -> Document:
    roles = np.full(length, Role.WEB if kind == "web" else Role.OBS, np.uint8)
    roles[[0, -1]] = Role.MARKER
    statuses = np.full(length, Status.NA if kind == "web" else Status.OK, np.uint8)
    return Document(np.array([next(ids) for _ in range(length)], np.int32), roles, statuses, np.zeros(length, np.uint8))

  def make(name: str, lengths: Sequence[int], *, kind: str = "web", streams: int = 4, share: float = 1.0) -> Source:
    folder = tmp_path_factory.mktemp(name)
    # Plain bytes on disk, so that a test can find the record it wants to hurt.
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(shards, "_WRITER_OPTIONS", "group_size:1,uncompressed")
      _write(folder, name, lengths, kind, streams)
    return Source(name=name, path=str(folder), share=share)

  def _write(folder: pathlib.Path, name: str, lengths: Sequence[int], kind: str, streams: int) -> None:
    for split in ("train", "heldout"):
      writer = ShardWriter(
        folder / split, kind=kind, tokenizer_digest=DIGEST, vocab_size=1 << 30, first_reserved=1 << 29, streams=streams,
        shard_tokens=1000,
      )  # fmt: skip
      for length in lengths:
        writer.add(document(length, kind), 3 * length)
      writer.close({"duplicates": 0})

  return make


@pytest.fixture(scope="session")
def damage_record() -> Callable[[pathlib.Path, int], tuple[str, int]]:
  """Flips a bit in the stored ids of a document of a split; returns its shard and record."""

  def damage(split: pathlib.Path, document: int) -> tuple[str, int]:
    starts = np.cumsum([0] + [shard.documents for shard in shards.read_index(split).shards])
    shard = int(np.searchsorted(starts, document, side="right")) - 1
    ids = shards.open_shards(split, on_damage="quarantine")[document].ids
    path = split / f"tokens-{shard:05d}.array_record"
    data = bytearray(path.read_bytes())
    at = data.find(ids.astype("<u4").tobytes()[:8])
    assert at > 0
    data[at + 2] ^= 16
    path.write_bytes(data)
    return path.name, document - int(starts[shard])

  return damage


@pytest.fixture(scope="session")
def make_data() -> MakeData:
  def make(*sources: Source, **fields: object) -> Data:
    plain = Formats(infill=0, fim=0, decision=0)
    defaults: dict[str, object] = {"sequence_tokens": 32, "global_batch": 4, "packing_window": 8, "formats": plain}
    return Data(sources=sources, **(defaults | fields))  # type: ignore[arg-type]

  return make


@pytest.fixture(scope="session")
def digest() -> str:
  return DIGEST


@pytest.fixture
def pipelines() -> Iterator[Callable[..., Pipeline]]:
  """Opens pipelines of all rows, or of those given, and closes them after the test."""
  opened = []

  def make(data: Data, rows: Rows = range, **options: Any) -> Pipeline:
    opened.append(open_pipeline(data, DIGEST, rows=rows, **options))
    return opened[-1]

  yield make
  for pipeline in opened:
    pipeline.close()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
  texts = ["the quick brown fox jumps over the lazy dog " * 3 + str(n) for n in range(50)]
  return train(texts, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", vocab_size=360)


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., Trace]:
  def make(number: int, answer: str = "fox") -> Trace:
    segments = (
      Segment(role="goal", text=f"find number {number}"),
      Segment(role="call", text="get", args='{"k":1}', status="err", step=1),
      Segment(role="obs", text="no key", status="err", step=1),
      Segment(role="back", text=""),
      Segment(role="answer", text=answer),
    )
    return Trace(id=str(number), family="kv", segments=segments, outcome="ok")

  return make


@pytest.fixture
def write_traces(tmp_path: pathlib.Path) -> Callable[[Sequence[Trace]], pathlib.Path]:
  def write(traces: Sequence[Trace]) -> pathlib.Path:
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(trace.to_json() + "\n" for trace in traces), encoding="utf-8")
    return path

  return write
