"""`maxagent data generate` writes what it was asked for and says what it made."""

from __future__ import annotations

import json
import pathlib

import pytest

from maxagent.cli.main import main
from maxagent.data.sources import SourceTrace, read_traces


def _generate(folder: pathlib.Path, *options: str) -> dict[str, object]:
  assert main(["data", "generate", "--episodes=120", "--seed=2", f"--output={folder}", *options]) == 0
  index: dict[str, object] = json.loads((folder / "index.json").read_text())
  return index


def test_failed_episodes_come_with_what_was_recovered_of_them(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
  index = _generate(tmp_path, "--failing=0.25")
  items = [item for item in read_traces([tmp_path]) if isinstance(item, SourceTrace)]
  policies = [item.trace.policy for item in items]
  assert 15 < policies.count("careless") < 45
  assert policies.count("careless+splice") > policies.count("careless+hindsight") > 0
  said = capsys.readouterr().out
  assert f"careless+splice {policies.count('careless+splice')}" in said and "hindsight: no_answer" in said
  assert said.endswith(f"120 episodes, {len(items)} records in {tmp_path}\n")
  assert index["failing"] == 0.25


def test_no_episode_fails_unless_asked_for_and_the_others_are_the_same_whether_some_fail_or_not(tmp_path: pathlib.Path):
  plain = _generate(tmp_path / "plain")
  _generate(tmp_path / "some", "--failing=0.25")
  assert plain["failing"] == 0 and plain["counts"]["outcome"] == {"ok": 120}  # type: ignore[index]
  traces, some = (
    [item.trace for item in read_traces([tmp_path / name]) if isinstance(item, SourceTrace)] for name in ("plain", "some")
  )
  solved = [trace for trace in some if trace.policy.startswith("oracle")]
  failed = {trace.id for trace in some if trace.policy == "careless"}
  assert failed and solved == [trace for trace in traces if trace.id not in failed]
