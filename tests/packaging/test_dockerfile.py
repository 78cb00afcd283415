"""No container engine runs where the tests run, so the Dockerfile's steps are checked against the repository."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def steps() -> list[tuple[str, str]]:
  """(instruction, arguments) of every step, continued lines joined."""
  text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
  lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
  return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def copied() -> list[str]:
  return [source for name, arguments in steps() if name == "COPY" for source in arguments.split()[:-1]]


def installs() -> list[str]:
  """The arguments of every `python -m pip install`."""
  return [
    command.strip().removeprefix("python -m pip install")
    for name, arguments in steps()
    if name == "RUN"
    for command in arguments.split("&&")
    if command.strip().startswith("python -m pip install")
  ]


def test_every_copied_source_exists_and_reaches_the_engine() -> None:
  allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
  assert copied()
  for source in copied():
    assert (ROOT / source).exists(), source
    assert source in allowed, f".dockerignore hides {source}"


def test_the_image_is_slim_and_runs_as_a_user_who_is_not_root() -> None:
  images = [arguments for name, arguments in steps() if name == "FROM"]
  assert all(image.endswith("-slim") for image in images)
  users = [arguments for name, arguments in steps() if name == "USER"]
  assert users
  assert users[-1] not in ("root", "0")
  assert any(name == "RUN" and "useradd" in arguments and users[-1] in arguments for name, arguments in steps())


def test_the_entry_point_is_the_command_in_exec_form() -> None:
  entry_points = [json.loads(arguments) for name, arguments in steps() if name == "ENTRYPOINT"]
  assert entry_points == [["maxagent"]]


def test_the_image_installs_the_lock_then_the_package_alone() -> None:
  lock, package = installs()
  assert "--requirement requirements/tpu.lock" in lock
  assert "--no-deps" in package
  assert package.endswith(" .")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_image_s_install_steps_work_in_a_fresh_environment(tmp_path: pathlib.Path) -> None:
  tree, venv = tmp_path / "tree", tmp_path / "venv"
  tree.mkdir()
  for source in copied():
    if source.endswith("/"):
      shutil.copytree(ROOT / source, tree / source, ignore=shutil.ignore_patterns("__pycache__"))
    else:
      shutil.copy(ROOT / source, tree / source)
  subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
  for arguments in installs():
    command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", *shlex.split(arguments)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run(
    [str(venv / "bin" / "maxagent"), "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "train" in done.stdout
