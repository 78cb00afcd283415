"""`maxagent plan` as a user calls it: what it refuses, and what it prints of an answer that is kept."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import pytest

from maxagent import config as configs
from maxagent.cli import plan as command
from maxagent.cli.main import main
from maxagent.plan.estimate import Plan

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = f"--config={ROOT / 'configs' / 'base_8b.py'}"
has_libtpu = importlib.util.find_spec("libtpu") is not None


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Plan:
  """The answer that libtpu gave of the 8B config; the command is given it in place of a compiler."""
  record = json.loads((ROOT / "tests" / "golden" / "plan_base_8b.json").read_text())
  plan = Plan.from_dict(record | {"config": json.loads(configs.to_json(configs.load([CONFIG])))})
  monkeypatch.setattr(command, "_plans", lambda arguments, config: [plan, plan])
  return plan


@pytest.mark.skipif(has_libtpu, reason="libtpu is installed")
def test_without_libtpu_the_command_names_the_cure(capsys: pytest.CaptureFixture[str]):
  assert main(["plan", CONFIG, "--topology=v5p:8x8x4"]) == 2
  assert "pip install 'maxagent[tpu]'" in capsys.readouterr().err


@pytest.mark.skipif(not has_libtpu, reason="libtpu is not installed")
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--topology=v9z:2x2"], "no known chip; known are v4:4x4x4"),
    (["--topology=v5p:8x8x4", "--search", "--save=x"], "--save keeps the step of one setting"),
    (["--topology=v5p:8x8x4", "--min-chips"], "give the chip alone, --topology=v5p"),
    (["--topology=v5p:2x2x1"], "does not divide the 4 devices"),
  ],
)
def test_what_cannot_be_planned_is_refused_with_its_cure(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]):
  assert main(["plan", CONFIG, *flags]) == 2
  assert message in capsys.readouterr().err


def test_one_screen_holds_the_verdict_and_the_run(kept: Plan, capsys: pytest.CaptureFixture[str]):
  assert main(["plan", CONFIG, "--topology=v5p:8x8x4"]) == 0
  text = capsys.readouterr().out
  assert text.splitlines()[1] == kept.memory.verdict()
  assert "chip-hours" in text and "all-reduce" in text and "Best settings" not in text


def test_a_search_ends_with_a_comparison(kept: Plan, capsys: pytest.CaptureFixture[str]):
  assert main(["plan", CONFIG, "--topology=v5p:8x8x4", "--search"]) == 0
  assert "Best settings" in capsys.readouterr().out


def test_json_is_a_line_for_every_plan_and_reads_back(kept: Plan, capsys: pytest.CaptureFixture[str]):
  assert main(["plan", CONFIG, "--topology=v5p:8x8x4", "--json"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [Plan.from_dict(json.loads(line)) for line in lines] == [kept, kept]
  assert json.loads(lines[0])["run"]["fits"] is True


def test_html_prints_the_path_alone(kept: Plan, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
  page = tmp_path / "plan.html"
  assert main(["plan", CONFIG, "--topology=v5p:8x8x4", f"--html={page}"]) == 0
  assert capsys.readouterr().out == f"{page}\n"
  assert kept.memory.verdict() in page.read_text()
