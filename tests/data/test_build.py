from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import pytest

from maxagent.config.schema import Data, Source
from maxagent.data.build import BuildOptions, BuildSummary, build
from maxagent.data.pipeline import open_pipeline
from maxagent.data.shards import open_shards, read_index
from maxagent.errors import ConfigError, EmptySourceError, UndecodableError
from maxagent.tokenizer import Tokenizer
from maxagent.traces.schema import Trace

WriteTraces = Callable[[Sequence[Trace]], pathlib.Path]


@pytest.fixture
def build_lines(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> Callable[..., BuildSummary]:
  def make(lines: Sequence[str | bytes], output: str = "out", **options: int) -> BuildSummary:
    path = tmp_path / "input.jsonl"
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps({"text": x}).encode()) + b"\n" for x in lines))
    return build("web", tmp_path / output, [path], tokenizer=tokenizer, options=BuildOptions(**options))

  return make


def texts(summary: BuildSummary, split: str, tokenizer: Tokenizer) -> list[str]:
  shards = open_shards(pathlib.Path(summary.output) / split)
  return [tokenizer.decode(shards[n].ids.tolist()[1:-1]) for n in range(len(shards))]


def test_every_text_is_in_exactly_one_split_in_order(build_lines: Callable[..., BuildSummary], tokenizer: Tokenizer) -> None:
  lines = [f"text number {n}" for n in range(300)]
  summary = build_lines(lines, heldout_per_mille=100)
  train, heldout = (texts(summary, split, tokenizer) for split in ("train", "heldout"))
  assert sorted(train + heldout) == sorted(lines)
  assert heldout == sorted(heldout, key=lines.index) and 10 < len(heldout) < 60
  assert summary.train.bytes + summary.heldout.bytes == sum(map(len, lines))


def test_duplicates_are_removed_and_counted(build_lines: Callable[..., BuildSummary]) -> None:
  summary = build_lines(["a", "b", "a", "a", "c"])
  assert summary.counts["duplicates"] == 2 and summary.counts["read"] == 5
  assert summary.train.documents + summary.heldout.documents == 3
  assert read_index(pathlib.Path(summary.output) / "train").counts == summary.counts


def test_the_split_of_a_text_depends_on_the_text_alone(build_lines: Callable[..., BuildSummary], tokenizer: Tokenizer) -> None:
  lines = [f"text number {n}" for n in range(100)]
  first = set(texts(build_lines(lines, heldout_per_mille=300), "heldout", tokenizer))
  second = set(texts(build_lines(lines[::-1][:50], heldout_per_mille=300, output="b"), "heldout", tokenizer))
  assert second == first & set(lines[50:])


@pytest.mark.parametrize("count", range(2, 9))
def test_a_few_texts_still_hold_one_out(build_lines: Callable[..., BuildSummary], count: int) -> None:
  summary = build_lines([f"t{n}" for n in range(count)], heldout_per_mille=1)
  assert summary.heldout.documents >= 1 and summary.train.documents >= 1
  assert summary.heldout.documents + summary.train.documents == count


def test_one_text_is_trained_on_and_nothing_is_held_out_when_off(build_lines: Callable[..., BuildSummary]) -> None:
  assert build_lines(["only"]).train.documents == 1
  assert build_lines([f"t{n}" for n in range(50)], heldout_per_mille=0).heldout.documents == 0


def test_of_one_long_text_the_last_part_is_held_out(build_lines: Callable[..., BuildSummary], tokenizer: Tokenizer) -> None:
  text = "\n\n".join(f"paragraph {n} of the only text" for n in range(40))
  summary = build_lines([text], part_bytes=200)
  train, heldout = (texts(summary, split, tokenizer) for split in ("train", "heldout"))
  assert len(heldout) == 1 and "".join(train + heldout) == text


def test_parts_of_a_long_text_stay_in_one_split(build_lines: Callable[..., BuildSummary], tokenizer: Tokenizer) -> None:
  long = ["\n\n".join(f"document {n} paragraph {i}" for i in range(20)) for n in range(40)]
  summary = build_lines(long, heldout_per_mille=300, part_bytes=100)
  train, heldout = ("".join(texts(summary, split, tokenizer)) for split in ("train", "heldout"))
  assert all((text in train) != (text in heldout) for text in long)
  assert summary.train.documents > 100 and max(open_shards(pathlib.Path(summary.output) / "train").lengths) <= 102


def test_rejects_are_written_with_their_reasons_and_counted(build_lines: Callable[..., BuildSummary]) -> None:
  summary = build_lines(["good", b'{"text": "caf\xe9"}', "", b'{"text": "\\ud800"}', b"{", "fine"])
  assert (summary.counts["rejected"], summary.counts["undecodable"]) == (4, 2)
  lines = (pathlib.Path(summary.output) / "rejects.jsonl").read_text().splitlines()
  reasons = [json.loads(line)["reason"] for line in lines]
  for reason, expected in zip(reasons, ("not UTF-8", "empty", "lone surrogate", "not JSON"), strict=True):
    assert expected in reason


def test_spelled_reserved_tokens_are_text_and_counted(build_lines: Callable[..., BuildSummary], tokenizer: Tokenizer) -> None:
  summary = build_lines(["a <|call|> b <|end|>", "plain"])
  assert summary.counts["reserved_spellings"] == 2
  assert sorted(texts(summary, "train", tokenizer) + texts(summary, "heldout", tokenizer)) == ["a <|call|> b <|end|>", "plain"]


def test_nothing_left_says_why(build_lines: Callable[..., BuildSummary], tmp_path: pathlib.Path) -> None:
  with pytest.raises(UndecodableError, match=r"no document remains.*1 undecodable.*rejects\.jsonl"):
    build_lines([b'{"text": "\xff"}'])
  with pytest.raises(EmptySourceError, match=r"no document remains"):
    build_lines(["", " "])
  assert not (tmp_path / "out" / "train" / "index.json").exists()


def test_wrong_requests_are_refused(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
  with pytest.raises(ConfigError, match="kind is 'text'; expected web or trace"):
    build("text", tmp_path, ["x"], tokenizer=tokenizer)
  with pytest.raises(ConfigError, match="no input is named"):
    build("trace", tmp_path, tokenizer=tokenizer)
  with pytest.raises(ConfigError, match="heldout_per_mille is 1000"):
    BuildOptions(heldout_per_mille=1000)
  with pytest.raises(ConfigError, match="streams is 0"):
    BuildOptions(streams=0)


def test_the_same_input_builds_the_same_shards(build_lines: Callable[..., BuildSummary]) -> None:
  lines = [f"text number {n}" for n in range(50)]
  first, second = build_lines(lines), build_lines(lines, output="again")
  assert (first.train.digest, first.heldout.digest) == (second.train.digest, second.heldout.digest)


def test_no_input_harvests_this_machine_with_a_manifest(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
  seen: list[tuple[int, int]] = []
  options = BuildOptions(byte_cap=300_000)
  summary = build("web", tmp_path, tokenizer=tokenizer, options=options, progress=lambda n, tokens: seen.append((n, tokens)))
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  assert 0.9 * 300_000 < summary.train.bytes + summary.heldout.bytes <= manifest["bytes"] <= 300_000
  assert seen[-1] == (summary.counts["read"], summary.train.tokens + summary.heldout.tokens)


def test_traces_and_text_go_from_files_to_batches(
  tmp_path: pathlib.Path, tokenizer: Tokenizer, make_trace: Callable[..., Trace], write_traces: WriteTraces,
  build_lines: Callable[..., BuildSummary],
) -> None:  # fmt: skip
  traces = [make_trace(n) for n in range(40)] + [make_trace(3)]
  summary = build("trace", tmp_path / "trace", [write_traces(traces)], tokenizer=tokenizer)
  assert summary.counts["duplicates"] == 1 and summary.train.kind == "trace"
  assert summary.train.documents + summary.heldout.documents == 40
  assert {"goal", "call", "args", "obs", "answer", "marker"} <= set(summary.train.role_tokens)
  web = build_lines([f"text {n} " * 30 for n in range(30)])
  sources = (Source(name="web", path=web.output), Source(name="trace", path=summary.output))
  data = Data(sources=sources, sequence_tokens=256, global_batch=4)
  pipeline = open_pipeline(data, tokenizer.digest, rows=range(4))
  batch = next(pipeline)
  pipeline.close()
  assert (batch.segments > 0).all() and set(batch.sources.ravel().tolist()) == {0, 1}


def test_two_traces_that_differ_in_their_id_alone_are_one(
  tmp_path: pathlib.Path, tokenizer: Tokenizer, make_trace: Callable[..., Trace], write_traces: WriteTraces
) -> None:
  traces = [make_trace(0), dataclasses.replace(make_trace(0), id="other"), make_trace(1)]
  assert build("trace", tmp_path / "t", [write_traces(traces)], tokenizer=tokenizer).counts["duplicates"] == 1


def test_traces_of_one_world_stay_in_one_split(
  tmp_path: pathlib.Path, tokenizer: Tokenizer, make_trace: Callable[..., Trace], write_traces: WriteTraces
) -> None:
  worlds = [dataclasses.replace(make_trace(n), id=f"{n}", env_seed=n % 30) for n in range(90)]
  summary = build(
    "trace", tmp_path / "t", [write_traces(worlds)], tokenizer=tokenizer, options=BuildOptions(heldout_per_mille=300)
  )
  assert summary.heldout.documents > 0 and summary.heldout.documents % 3 == 0 == summary.train.documents % 3


@pytest.mark.parametrize("name", ["web_permissive.jsonl.gz"])
def test_a_large_real_file_builds(name: str, tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
  path = pathlib.Path(__file__).parents[3] / "shared" / "data" / "web" / name
  if not path.exists():
    pytest.skip(f"{name} is not beside the project")
  summary = build("web", tmp_path, [path], tokenizer=tokenizer)
  assert summary.train.documents > 1500 and summary.counts["rejected"] == summary.counts["near_duplicates"] < 100


def test_a_build_that_fails_leaves_the_one_before_as_it_was(
  build_lines: Callable[..., BuildSummary], tokenizer: Tokenizer, tmp_path: pathlib.Path
) -> None:
  first = build_lines([f"t{n}" for n in range(50)])
  (tmp_path / "bad.parquet").write_bytes(b"no parquet")
  (tmp_path / "good.txt").write_text("a text that is read before the damage is met")
  with pytest.raises(UndecodableError):
    build("web", first.output, [tmp_path / "good.txt", tmp_path / "bad.parquet"], tokenizer=tokenizer)
  assert open_shards(pathlib.Path(first.output) / "train").index == first.train
  assert build_lines(["other", "texts"]).train.documents == 1
  assert {path.name for path in pathlib.Path(first.output).iterdir()} == {"train", "heldout", "rejects.jsonl"}
