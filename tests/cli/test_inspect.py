"""`maxagent data inspect` on real data, in this process: what is shown is what training reads."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
import shutil
from collections.abc import Callable
from contextlib import closing

import bs4
import numpy as np
import pytest

from maxagent import config as configs
from maxagent.cli.inspected import inspect_batch, reject_reasons
from maxagent.cli.main import main
from maxagent.cli.schedule_read import schedule_charts
from maxagent.cli.token_records import pieces
from maxagent.config import Config
from maxagent.data.batch import Batch
from maxagent.data.pipeline import open_pipeline
from maxagent.data.shards import read_index
from maxagent.errors import DataError
from maxagent.tokenizer import Tokenizer
from maxagent.traces.schema import Flag, Role

Inspect = Callable[..., str]
FORMATS = ["--config.data.formats.infill=0.4", "--config.data.formats.fim=0.2", "--config.data.formats.decision=0.4"]


@pytest.fixture
def arguments(smoke_arguments: list[str]) -> list[str]:
  return [*smoke_arguments, *FORMATS, "--config.data.sequence_tokens=768"]


@pytest.fixture
def config(arguments: list[str]) -> Config:
  return configs.load(arguments)


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inspect:
  monkeypatch.setenv("COLUMNS", "100")

  def run(*words: str | pathlib.Path, code: int = 0) -> str:
    assert main(["data", "inspect", *map(str, words)]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out

  return run


def _batch(config: Config, step: int) -> Batch:
  digest = Tokenizer.load(config.data.tokenizer).digest
  with closing(open_pipeline(config.data, digest, rows=range(config.data.global_batch))) as pipeline:
    return next(itertools.islice(pipeline, step - 1, None))


def test_the_page_of_a_step_holds_the_tokens_that_training_reads_at_it(
  inspect: Inspect, arguments: list[str], config: Config, tmp_path: pathlib.Path
) -> None:
  page = tmp_path / "rows.html"
  assert inspect("--step=3", "--rows=8", f"--html={page}", *arguments).strip() == str(page)
  soup, batch = bs4.BeautifulSoup(page.read_bytes(), "html.parser"), _batch(config, 3)
  rows = soup.select("details.row")
  assert len(rows) == 8
  for row, ids, segments, targets, roles in zip(rows, batch.tokens, batch.segments, batch.targets, batch.roles, strict=True):
    shown = [int(re.search(r"id (\d+)\n", span["title"])[1]) for span in row.select(".t:not(.beyond)")]
    assert shown == ids[segments > 0].tolist()
    beyond = [int(re.search(r"id (\d+)\n", span["title"])[1]) for span in row.select(".t.beyond")]
    ends = np.diff(segments, append=0) != 0
    assert beyond == targets[ends & (roles != Role.PAD)].tolist()


def test_every_hole_and_every_decision_of_a_real_batch_is_joined(
  inspect: Inspect, arguments: list[str], config: Config, tmp_path: pathlib.Path
) -> None:
  page = tmp_path / "rows.html"
  inspect("--step=2", "--rows=8", f"--html={page}", *arguments)
  soup, batch = bs4.BeautifulSoup(page.read_bytes(), "html.parser"), _batch(config, 2)
  for kind, flag in (("hole", Flag.HOLE), ("decision", Flag.DECISION)):
    flagged = {(row, int(batch.segments[row, i])) for row, i in np.argwhere(batch.flags & flag > 0).tolist()}
    assert flagged
    assert len(soup.select(f'a[id$="-{kind}-from"]')) == len(soup.select(f'a[id$="-{kind}-to"]')) == len(flagged)
  for link in soup.select("a.jump"):
    assert soup.find(id=link["href"][1:])["href"] == f"#{link['id']}"


def test_the_figures_are_of_the_whole_batch_with_the_weights_of_the_loss(config: Config) -> None:
  from maxagent.cli.token_records import target_weights
  from maxagent.objectives.weights import weight_table

  batch = _batch(config, 2)
  weights = target_weights(batch.roles, batch.statuses, batch.flags, weight_table(config.objective, 1))
  inspection = inspect_batch(config, step=2, rows=1, workdir=None, charts=False)
  assert sum(tally.targets for tally in inspection.tallies) == np.sum(batch.roles != Role.PAD)
  assert sum(tally.supervised for tally in inspection.tallies) == np.sum(weights > 0)
  assert sum(tally.weight for tally in inspection.tallies) == pytest.approx(weights.sum())
  assert len(inspection.rows) == 1


def test_a_weight_that_a_schedule_changes_is_that_of_the_step(config: Config) -> None:
  import dataclasses

  objective = dataclasses.replace(config.objective, schedule=(("tools", ((0, 1.0), (4, 0.5))),))
  inspection = inspect_batch(dataclasses.replace(config, objective=objective), step=3, rows=8, workdir=None, charts=False)
  weights = {t.weight for row in inspection.rows for d in row.documents for t in d.tokens if t.role == "tools"}
  assert {round(w, 6) for w in weights} - {0.0} <= {0.75, 1.0} and 0.75 in weights  # a filled hole weighs 1


def test_the_terminal_shows_the_same_rows(inspect: Inspect, arguments: list[str]) -> None:
  shown = inspect("--step=1", "--rows=3", *arguments)
  assert len(re.findall(r"^─+ Row \d ─+$", shown, re.MULTILINE)) == 3
  assert re.search(r"^│ trace · segment 1 · \d+ tokens · \d+% supervised", shown, re.MULTILINE)
  assert "Asked of content tokens: trace 50.0%, web 50.0%." in shown and "\x1b" not in shown


def test_shards_are_shown_with_what_their_build_counted(inspect: Inspect, small_data: pathlib.Path) -> None:
  shown = inspect(small_data / "trace", "--rows=2", "--first=1")
  index = read_index(small_data / "trace" / "train")
  for name, count in index.counts.items():
    assert re.search(rf"^{name.replace('_', ' ')} +{count:,}$", shown.replace(" \n", "\n"), re.MULTILINE) or count == 0
  assert "Document 1" in shown and "Document 2" in shown and "Document 3" not in shown
  assert f"2 of {index.documents} documents" in shown


def test_a_split_alone_is_shown_too_and_its_tokenizer_is_found_by_its_digest(
  inspect: Inspect, small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  shutil.copytree(small_data / "web", tmp_path / "web")
  (tmp_path / "tokenizer.model").write_bytes(b"of something else")
  assert "made with the tokenizer" in inspect(tmp_path / "web", code=2)
  shutil.copy(small_data / "tokenizer.model", tmp_path / "web" / "tokenizer.model")
  assert "web shards, heldout" in inspect(tmp_path / "web" / "heldout")


def test_what_was_left_out_is_counted_by_reason(tmp_path: pathlib.Path) -> None:
  reasons = ["nearly the same as a.txt", "empty", "nearly the same as b c", "empty", "nearly the same as a.txt", "not JSON: x"]
  (tmp_path / "rejects.jsonl").write_text("".join(json.dumps({"origin": "o", "reason": r}) + "\n" for r in reasons))
  assert reject_reasons(tmp_path / "rejects.jsonl") == [("nearly the same as …", 3), ("empty", 2), ("not JSON: x", 1)]
  assert reject_reasons(tmp_path / "absent.jsonl") == []


def test_a_damaged_list_of_rejects_is_named_by_its_line(tmp_path: pathlib.Path) -> None:
  (tmp_path / "rejects.jsonl").write_text('{"reason": "empty"}\n{"origin": "x"}\n')
  with pytest.raises(DataError, match=r"rejects.jsonl, line 2"):
    reject_reasons(tmp_path / "rejects.jsonl")


def test_the_pieces_of_tokens_are_their_text_and_a_character_of_several_bytes_stands_whole(small_data: pathlib.Path) -> None:
  tokenizer = Tokenizer.load(small_data / "tokenizer.model")
  for text in ("plain  text\n\tcode", "é中\U0001f600\u2581", "a\U0001f600\U0001f600b", "\ufffd\x1b"):
    ids = [tokenizer.id("call"), *tokenizer.encode(text)]
    assert "".join(pieces(tokenizer, ids)) == f"<|call|>{text}"
    assert all(len(piece.encode()) < 5 or piece.isascii() for piece in pieces(tokenizer, ids))


def test_shares_come_from_the_records_of_a_run_and_without_them_from_the_plan(config: Config, tmp_path: pathlib.Path) -> None:
  digest = Tokenizer.load(config.data.tokenizer).digest
  (planned, _), origin = schedule_charts(config, digest, None)
  assert "planned" in origin and len(planned.series[0].tokens) == config.training.steps
  assert sum(series.values[3] for series in planned.series[:2]) == pytest.approx(1)
  record = {"step": 10, "tokens": 1000, "mixture/fill": 1.0, "mixture/added": 0.0}
  record |= {"mixture/realised/trace": 0.25, "mixture/realised/web": 0.75}
  (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
  (read, supervised), origin = schedule_charts(config, digest, tmp_path)
  assert "recorded" in origin and list(read.series[0].values) == [0.25]
  assert list(supervised.series[0].values) == pytest.approx([0.25], rel=0.01)  # all but first tokens, before mid-training


def test_in_mid_training_a_source_has_less_of_the_supervised_tokens_than_of_all(config: Config) -> None:
  import dataclasses

  midtrain = dataclasses.replace(config, objective=dataclasses.replace(config.objective, phase="midtrain"))
  content, supervised = schedule_charts(midtrain, Tokenizer.load(config.data.tokenizer).digest, None)[0]
  traces = [chart.series[0].values for chart in (content, supervised)]
  assert all(b < a for a, b in zip(*traces, strict=True))


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ([], "nothing to look at"),
    (["--step=0", "CONFIG"], "1 or more"),
    (["--rows=none", "CONFIG"], "no whole number"),
    (["--first=3", "CONFIG"], "--first is given without DIR"),
    (["--tokenizer=x.model", "CONFIG"], "--tokenizer is given without DIR"),
    (["--workdir=W", "CONFIG"], "Name one of them"),
    (["--workdir=W"], "holds no run"),
    (["DATA/trace", "--step=2"], "shards have no steps"),
    (["DATA/trace", "--first=100000"], "has documents 0 to"),
    (["DATA/nowhere"], "expected a folder written by `maxagent data build`"),
    (["DATA/trace", "--tokenizer=DATA/absent.model"], "absent.model"),
    (["DATA/trace", "--html=DATA/absent/page.html"], "name another path"),
    (["DATA/trace", "--colour"], "unknown argument '--colour'"),
  ],
)
def test_a_mistake_is_told_with_its_cure(
  words: list[str], message: str, inspect: Inspect, smoke_arguments: list[str], small_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  filled = [word.replace("DATA", str(small_data)).replace("=W", f"={tmp_path}") for word in words if word != "CONFIG"]
  told = inspect(*filled, *(smoke_arguments if "CONFIG" in words else []), code=2)
  assert message in told and len(told.strip().splitlines()) == 1
