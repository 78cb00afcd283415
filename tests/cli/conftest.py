"""The command line as a user runs it: in a process of its own, on the smoke config."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
Maxagent = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def maxagent() -> Maxagent:
  """Runs `maxagent ARGUMENTS...` in the repository's root and returns what it printed."""

  def run(*arguments: str | pathlib.Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "maxagent.cli.main", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, f"exit {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}"
    return done

  return run


@pytest.fixture(scope="session")
def smoke_arguments(small_data: pathlib.Path) -> list[str]:
  """What `maxagent train` needs besides the workdir to run configs/smoke.py on the small data."""
  return [f"--config=configs/smoke.py:{small_data}", "--config.model.vocab_size=512"]
