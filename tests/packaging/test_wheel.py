"""What the wheel holds and asks for."""

from __future__ import annotations

import configparser
import email
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
  """The wheel of a copy of this tree, built without the network."""
  tree = tmp_path_factory.mktemp("tree")
  shutil.copy(ROOT / "setup.py", tree)
  shutil.copy(ROOT / "pyproject.toml", tree)
  for folder in ("maxagent", "kernels"):
    shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
  command = [
    sys.executable,
    "-m",
    "build",
    "--wheel",
    "--no-isolation",
    "--skip-dependency-check",
    "--outdir",
    str(tree / "dist"),
  ]
  done = subprocess.run([*command, str(tree)], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  (built,) = (tree / "dist").glob("*.whl")
  return zipfile.ZipFile(built)


def metadata_file(wheel: zipfile.ZipFile, name: str) -> str:
  (path,) = (n for n in wheel.namelist() if n.endswith(f".dist-info/{name}"))
  return wheel.read(path).decode()


def requirements(wheel: zipfile.ZipFile) -> list[Requirement]:
  return [Requirement(r) for r in email.message_from_string(metadata_file(wheel, "METADATA")).get_all("Requires-Dist", [])]


def locked(name: str) -> dict[str, str]:
  """Project name -> pinned version of a lock file and of those it includes."""
  versions = {}
  for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines():
    if line.startswith("-r "):
      versions |= locked(line.removeprefix("-r ").strip())
    elif line and not line.startswith("#"):
      pin = line.split(";")[0].strip()
      project, _, version = pin.partition("==")
      assert version, f"requirements/{name} has {line!r}, which pins no exact version"
      versions[canonical(project)] = version
  return versions


def canonical(project: str) -> str:
  return re.sub(r"[-_.]+", "-", project).lower()


def test_the_wheel_installs_exactly_two_top_level_modules(wheel: zipfile.ZipFile) -> None:
  top = {name.split("/")[0] for name in wheel.namelist()}
  assert {name for name in top if not name.endswith(".dist-info")} == {"maxagent", "maxagent_kernels"}


def test_every_file_of_both_packages_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
  sources = {
    path.relative_to(base).as_posix()
    for base, package in ((ROOT, "maxagent"), (ROOT / "kernels", "maxagent_kernels"))
    for path in (base / package).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  }
  assert sources - set(wheel.namelist()) == set()


def test_the_console_script_is_the_command_line(wheel: zipfile.ZipFile) -> None:
  entries = configparser.ConfigParser()
  entries.read_string(metadata_file(wheel, "entry_points.txt"))
  assert dict(entries["console_scripts"]) == {"maxagent": "maxagent.cli.main:main"}


def test_the_wheel_declares_its_extras_and_python(wheel: zipfile.ZipFile) -> None:
  metadata = email.message_from_string(metadata_file(wheel, "METADATA"))
  assert set(metadata.get_all("Provides-Extra", [])) == {"tpu", "cuda", "hf", "gcs", "test", "dev"}
  assert metadata["Requires-Python"] == ">=3.11"


def test_no_requirement_has_an_upper_bound(wheel: zipfile.ZipFile) -> None:
  bounded = [str(r) for r in requirements(wheel) for s in r.specifier if s.operator in ("<", "<=", "==", "~=")]
  assert bounded == []


@pytest.mark.parametrize(("lock", "extra"), [("run.lock", ""), ("dev.lock", "test"), ("dev.lock", "dev"), ("tpu.lock", "tpu")])
def test_a_lock_pins_every_requirement_within_its_range(wheel: zipfile.ZipFile, lock: str, extra: str) -> None:
  pins = locked(lock)
  asked = [r for r in requirements(wheel) if r.marker is None or r.marker.evaluate({"extra": extra, "sys_platform": "linux"})]
  assert asked
  for requirement in asked:
    assert canonical(requirement.name) in pins, f"{lock} lacks {requirement}; run `make lock`"
    assert requirement.specifier.contains(pins[canonical(requirement.name)]), f"{lock} breaks {requirement}; run `make lock`"


def test_the_lock_pins_a_build_system_that_pyproject_accepts() -> None:
  (needed,) = map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"])
  assert needed.specifier.contains(locked("run.lock")[needed.name])


def test_no_lock_names_a_registry() -> None:
  for lock in (ROOT / "requirements").glob("*.lock"):
    assert not re.search(r"://|--(extra-)?index-url|--find-links", lock.read_text(encoding="utf-8")), lock.name
