"""The newcomer's commands, without running them."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
  # A test may itself run under make, whose flags and jobserver must not leak in.
  environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON")}
  return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
  """The files that decide what make does, without an environment or a run."""
  for name in ("Makefile", "setup.py"):
    shutil.copy(ROOT / name, tmp_path)
  shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
  shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
  return tmp_path


def test_make_alone_lists_every_phony_target(checkout: pathlib.Path) -> None:
  done = make(checkout)
  assert done.returncode == 0, done.stderr
  phony = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
  assert {"train", "test", "test-slow", "lint", "test-newest-jax", "bench", "clean"} <= set(phony)
  for target in phony:
    assert f"  make {target} " in done.stdout


def test_train_runs_each_step_once_in_order_and_notes_its_seconds(checkout: pathlib.Path) -> None:
  done = make(checkout, "--dry-run", "train")
  assert done.returncode == 0, done.stderr
  shown = re.findall(r"^(?:echo '|JAX_).*?\.venv/bin/maxagent (data \w+(?: --kind=\w+)?|train)", done.stdout, re.MULTILINE)
  assert shown == ["data generate", "data tokenizer", "data build --kind=web", "data build --kind=trace", "train"]
  noted = re.findall(r'"phase": "(\w+)"', done.stdout)
  assert noted == ["install", "episodes", "tokenizer", "web", "trace"]  # the run itself keeps a finer ledger


def test_a_finished_step_is_not_done_again(checkout: pathlib.Path) -> None:
  data = checkout / "runs" / "quickstart" / "data"
  data.mkdir(parents=True)
  (checkout / ".venv").mkdir()
  done_in_order = [
    ".venv/.run.done",
    "runs/quickstart/phases.jsonl",
    "runs/quickstart/data/.episodes.done",
    "runs/quickstart/data/.tokenizer.done",
  ]
  for age, stamp in enumerate(done_in_order):
    (checkout / stamp).touch()
    os.utime(checkout / stamp, (4_000_000_000 + age, 4_000_000_000 + age))
  shown = make(checkout, "--dry-run", "train").stdout
  assert "data generate" not in shown
  assert "pip install" not in shown
  assert "data build --kind=web" in shown


def test_a_step_that_fails_stops_make_and_still_notes_its_seconds(checkout: pathlib.Path) -> None:
  commands = checkout / ".venv" / "bin"
  commands.mkdir(parents=True)
  (commands / "maxagent").write_text("#!/bin/bash\n[[ $2 != tokenizer ]]\n", encoding="utf-8")
  (commands / "maxagent").chmod(0o755)
  (checkout / ".venv" / "install.json").write_text('{"phase": "install", "seconds": 7}\n', encoding="utf-8")
  (checkout / ".venv" / ".run.done").touch()
  done = make(checkout, "train")
  assert done.returncode == 2
  ledger = (checkout / "runs" / "quickstart" / "phases.jsonl").read_text(encoding="utf-8")
  assert re.findall(r'"phase": "(\w+)"', ledger) == ["install", "episodes", "tokenizer"]
  assert not (checkout / "runs" / "quickstart" / "data" / ".tokenizer.done").exists()


def test_a_python_that_is_too_old_is_refused_by_name(checkout: pathlib.Path) -> None:
  old = checkout / "old-python"
  old.write_text('#!/bin/bash\n[[ $1 == --version ]] && { echo "Python 3.10.13"; exit 0; }\nexit 1\n', encoding="utf-8")
  old.chmod(0o755)
  done = make(checkout, f"PYTHON={old}", "install")
  assert done.returncode == 2
  assert "needs Python 3.11 or later; found: Python 3.10.13" in done.stderr
  assert "make PYTHON=" in done.stderr
