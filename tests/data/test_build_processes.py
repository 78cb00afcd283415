from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import pytest

from maxagent.data import build as building
from maxagent.data.build import BuildOptions, BuildSummary, build
from maxagent.data.prepare import Preparer, pack, unpack
from maxagent.data.safety import EvaluationSet, SafetyOptions
from maxagent.data.sources import text_parts
from maxagent.errors import ConfigError, DataError
from maxagent.tokenizer import Tokenizer
from maxagent.traces.schema import Trace


def write(path: pathlib.Path, texts: Sequence[str]) -> pathlib.Path:
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  return path


def texts(count: int, words: int, seed: int = 0) -> list[str]:
  draw = random.Random(seed)
  vocabulary = [f"w{draw.randrange(10**6)}" for _ in range(5000)]
  return [" ".join(draw.choices(vocabulary, k=words)) for _ in range(count)]


def digests(summary: BuildSummary) -> tuple[str, str]:
  return summary.train.digest, summary.heldout.digest


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(building, "_UNIT_BYTES", 2000)
  monkeypatch.setattr("maxagent.data.sources._PART_BYTES", 2000)


@pytest.mark.usefixtures("small_units")
def test_any_number_of_processes_writes_the_same_bytes(
  tmp_path: pathlib.Path, tokenizer: Tokenizer, make_trace: Callable[..., Trace],
  write_traces: Callable[[Sequence[Trace]], pathlib.Path],
) -> None:  # fmt: skip
  some = texts(40, 60)
  key = "AKIA" + "IOSFODNN7EXAMPLE"
  mixed = [*some, some[3], f"{some[5]} end", f"key {key}", "", "-" * 500, *texts(20, 60, seed=1)]
  inputs = {"web": [write(tmp_path / "in.jsonl", mixed)], "trace": [write_traces([make_trace(n) for n in range(60)])]}
  for kind, files in inputs.items():
    one, two = (
      build(kind, tmp_path / f"{kind}{n}", files, tokenizer=tokenizer, options=BuildOptions(processes=n)) for n in (1, 2)
    )
    assert digests(one) == digests(two) and one.counts == two.counts
    assert (tmp_path / f"{kind}1/rejects.jsonl").read_text() == (tmp_path / f"{kind}2/rejects.jsonl").read_text()
    if kind == "web":
      found = {name: one.counts[name] for name in ("read", "duplicates", "near_duplicates", "secrets", "rejected")}
      assert found == {"read": 65, "duplicates": 1, "near_duplicates": 1, "secrets": 1, "rejected": 2}
      assert one.counts["muted_tokens"] > 50 and one.train.counts == one.counts


@pytest.mark.usefixtures("small_units")
def test_a_build_that_failed_goes_on_with_what_was_ready(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
  good = write(tmp_path / "a.jsonl", texts(60, 60))
  bad = tmp_path / "b.parquet"
  bad.write_bytes(b"no parquet")
  with pytest.raises(DataError):
    build("web", tmp_path / "out", [good, bad], tokenizer=tokenizer)
  ready = len(list((tmp_path / "out/.unfinished/units").iterdir()))
  again = build("web", tmp_path / "out", [good], tokenizer=tokenizer)
  assert again.units_found == ready > 3
  assert digests(again) == digests(build("web", tmp_path / "whole", [good], tokenizer=tokenizer))
  assert not (tmp_path / "out/.unfinished").exists()


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("change", ["options", "records", "damage"])
def test_what_was_prepared_otherwise_is_prepared_again(tmp_path: pathlib.Path, tokenizer: Tokenizer, change: str) -> None:
  lines = texts(60, 60)
  bad = tmp_path / "b.parquet"
  bad.write_bytes(b"no parquet")
  with pytest.raises(DataError):
    build("web", tmp_path / "out", [write(tmp_path / "a.jsonl", lines), bad], tokenizer=tokenizer)
  options = BuildOptions(part_bytes=100) if change == "options" else BuildOptions()
  if change == "records":
    lines = [f"{line} more" for line in lines]
  for path in (tmp_path / "out/.unfinished/units").iterdir() if change == "damage" else ():
    path.write_bytes(path.read_bytes()[:-1] + b"?")
  good = write(tmp_path / "a.jsonl", lines)
  again = build("web", tmp_path / "out", [good], tokenizer=tokenizer, options=options)
  assert again.units_found == 0
  assert digests(again) == digests(build("web", tmp_path / "whole", [good], tokenizer=tokenizer, options=options))


def test_prepared_documents_survive_their_bytes(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
  path = write(tmp_path / "a.jsonl", ["one text", "", "another text, in parts " * 9])
  prepared = Preparer(tokenizer, SafetyOptions(), part_bytes=50)(list(text_parts([path])))
  assert len(prepared[2].documents) > 2 and prepared[1].reject is not None
  again = unpack(pack(prepared))
  assert again is not None and repr(again) == repr(prepared)
  assert unpack(pack([])) == [] and unpack(b"") is None
  assert all(unpack(pack(prepared)[:n]) is None for n in (3, 20))


def test_the_end_of_a_process_is_told(tmp_path: pathlib.Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(building, "_UNIT_BYTES", 2000)
  monkeypatch.setattr("maxagent.data.sources._PART_BYTES", 2000)
  monkeypatch.setattr(building, "_start", _die)
  path = write(tmp_path / "a.jsonl", texts(60, 60))
  with pytest.raises(DataError, match="start the build again with fewer processes"):
    build("web", tmp_path / "out", [path], tokenizer=tokenizer, options=BuildOptions(processes=2))


@pytest.mark.usefixtures("small_units")
def test_a_mistake_is_told_alike_by_any_number_of_processes(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
  path = write(tmp_path / "a.jsonl", texts(60, 60))
  safety = SafetyOptions(evaluation_sets=(EvaluationSet("exam", str(tmp_path / "none.txt")),))
  for processes in (1, 2):
    with pytest.raises(ConfigError, match=r"none\.txt does not exist"):
      build("web", tmp_path / "out", [path], tokenizer=tokenizer, options=BuildOptions(processes=processes, safety=safety))


def _die(*_: object) -> None:
  os.kill(os.getpid(), signal.SIGKILL)


def test_a_build_that_was_killed_goes_on_and_writes_what_it_would_have_written(
  tmp_path: pathlib.Path, small_data: pathlib.Path
) -> None:
  path = write(tmp_path / "a.jsonl", texts(3500, 400))  # 10 MB, five units
  command = [
    sys.executable,
    "-m",
    "maxagent.cli.main",
    "data",
    "build",
    "--kind=web",
    f"--tokenizer={small_data / 'tokenizer.model'}",
    str(path),
  ]
  command.append("--processes=2")
  process = subprocess.Popen([*command, f"--output={tmp_path / 'out'}"], start_new_session=True, stderr=subprocess.DEVNULL)
  units = tmp_path / "out/.unfinished/units"
  while process.poll() is None and not (units.is_dir() and any("." not in unit.name for unit in units.iterdir())):
    time.sleep(0.01)
  os.killpg(process.pid, signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  again = subprocess.run([*command, f"--output={tmp_path / 'out'}"], capture_output=True, text=True, check=True)
  told = [line for line in again.stdout.splitlines() if "of its parts were ready" in line]
  whole = subprocess.run([*command, f"--output={tmp_path / 'whole'}"], capture_output=True, text=True, check=True)
  assert len(told) == 1 and again.stdout.replace(told[0] + "\n", "") == whole.stdout
  for file in ("train/index.json", "heldout/index.json"):
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
