"""Shares of supervised tokens (`data.shares_of`)."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from maxagent.config.schema import Data, Source
from maxagent.data.document import Document
from maxagent.data.pipeline import Pipeline
from maxagent.data.shards import ShardWriter, read_index
from maxagent.errors import ConfigError
from maxagent.traces.schema import Flag, Role, Status

MakeSource = Callable[..., Source]
MakeData = Callable[..., Data]
Pipelines = Callable[..., Pipeline]


@pytest.fixture
def wanted() -> np.ndarray:
  """Text weighs something, and what was done well in traces; observations do not."""
  table = np.ones((len(Role), len(Status)), bool)
  table[[Role.OBS, Role.PAD]] = False
  table[Role.CALL, Status.ERR] = False
  return table


@pytest.fixture(scope="session")
def sources(make_source: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Source]:
  """Traces of which about a quarter is supervised, and text, asked for half and half."""
  folder = tmp_path_factory.mktemp("traces")
  writer = ShardWriter(
    folder / "train",
    kind="trace",
    tokenizer_digest="0123456789abcdef" * 2,
    vocab_size=1 << 30,
    first_reserved=1 << 29,
    streams=8,
  )
  rng = np.random.default_rng(0)
  for _ in range(200):
    n = int(rng.integers(4, 60))
    kinds = rng.choice(4, n)  # a call, an observation, an observation, a failed call
    roles = np.array([Role.CALL, Role.OBS, Role.OBS, Role.CALL], np.uint8)[kinds]
    statuses = np.array([Status.OK, Status.OK, Status.ERR, Status.ERR], np.uint8)[kinds]
    flags = np.where(rng.random(n) < 0.1, Flag.MUTED, 0).astype(np.uint8)
    writer.add(Document(rng.integers(1, 1000, n).astype(np.int32), roles, statuses, flags), n)
  writer.close({})
  web = make_source("web", rng.integers(2, 90, 60).tolist(), streams=8)
  return web, Source(name="trace", path=str(folder))


def weighing(batch: object, wanted: np.ndarray) -> np.ndarray:
  """How many targets of each source weigh something."""
  roles, statuses, flags, ids = (getattr(batch, name) for name in ("roles", "statuses", "flags", "sources"))
  weighs = wanted[roles, statuses] & (flags & (Flag.MUTED | Flag.ADDED) == 0)
  return np.bincount(ids[weighs], minlength=2)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_share_of_supervised_tokens_is_what_was_asked_for(
  sources: tuple[Source, Source], make_data: MakeData, pipelines: Pipelines, wanted: np.ndarray, share: float
) -> None:
  schedule = ((0.0, (("trace", share), ("web", 1 - share))),)
  pipeline = pipelines(make_data(*sources, schedule=schedule, shares_of="supervised"), supervised=wanted)
  counts = sum(weighing(next(pipeline), wanted) for _ in range(400))
  assert counts[0] / counts.sum() == pytest.approx(share, abs=0.01)
  assert pipeline.report()["realised"]["trace"] > share + 0.1  # so of all tokens they are more


def test_shares_of_content_do_not_change_with_what_weighs_something(
  sources: tuple[Source, Source], make_data: MakeData, pipelines: Pipelines, wanted: np.ndarray
) -> None:
  one, other = (pipelines(make_data(*sources), supervised=table) for table in (wanted, ~wanted))
  for _ in range(20):
    a, b = next(one), next(other)
    np.testing.assert_array_equal(a.tokens, b.tokens)
  assert one.get_state() == other.get_state()


def test_the_index_counts_targets_by_role_and_status_less_muted_added_and_first_tokens(tmp_path: pathlib.Path) -> None:
  writer = ShardWriter(tmp_path, kind="trace", tokenizer_digest="t", vocab_size=100, first_reserved=50, streams=4)
  roles = np.array([Role.MARKER, Role.CALL, Role.CALL, Role.OBS, Role.OBS, Role.OBS, Role.ANSWER], np.uint8)
  statuses = np.array([0, Status.ERR, Status.OK, Status.OK, Status.OK, Status.OK, 0], np.uint8)
  flags = np.array([0, 0, Flag.HOLE, Flag.MUTED, Flag.ADDED, 0, 0], np.uint8)
  writer.add(Document(np.arange(7, dtype=np.int32), roles, statuses, flags), 7)
  writer.close({})
  index = read_index(tmp_path)
  assert index.target_tokens == {"call.err": 1, "call.ok": 1, "obs.ok": 1, "answer.na": 1}
  wanted = np.zeros((len(Role), len(Status)), bool)
  wanted[Role.CALL] = True
  assert index.target_share(wanted) == 2 / 7


def test_a_source_without_a_supervised_token_can_have_no_share_of_them(
  sources: tuple[Source, Source], make_data: MakeData, pipelines: Pipelines, wanted: np.ndarray
) -> None:
  nothing = wanted & (np.arange(len(Role)) == Role.WEB)[:, None]
  with pytest.raises(ConfigError, match=r"no token of trace weighs anything.*data\.shares_of=content"):
    pipelines(make_data(*sources, shares_of="supervised"), supervised=nothing)
  rests = ((0.0, (("web", 1.0),)),)
  next(pipelines(make_data(*sources, shares_of="supervised", schedule=rests), supervised=nothing))


def test_what_weighs_something_must_be_told(sources: tuple[Source, Source], make_data: MakeData, pipelines: Pipelines) -> None:
  with pytest.raises(ConfigError, match="give open_pipeline `supervised`"):
    pipelines(make_data(*sources, shares_of="supervised"))
  with pytest.raises(ConfigError, match="content or supervised"):
    make_data(*sources, shares_of="documents")
