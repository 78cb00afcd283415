"""`maxagent checkpoint`: it tells what lies there, proves it, and touches nothing."""

from __future__ import annotations

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from maxagent.checkpoint import Checkpoints
from maxagent.cli.main import main

pytestmark = pytest.mark.smoke


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
  """A run that has saved steps 10 and 20."""
  checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=5)
  for step in (10, 20):
    state = {"params": {"w": jax.device_put(np.random.default_rng(step).standard_normal((64, 128)).astype(np.float32))}}
    checkpoints.save(step, state, data_state={}, config_json="{}", metadata={"tokens": step * 1000})
  checkpoints.close()
  return tmp_path / "run"


def largest(step_folder: pathlib.Path) -> pathlib.Path:
  """The file that holds the values of the array."""
  return max(step_folder.rglob("d/*"), key=lambda path: path.stat().st_size)


def flip(path: pathlib.Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def everything(folder: pathlib.Path) -> dict[str, tuple[int, bytes]]:
  """Every file with its time of change and content."""
  return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | pathlib.Path, code: int = 0) -> str:
  assert main(["checkpoint", *map(str, arguments)]) == code
  output = capsys.readouterr()
  return output.out + output.err


def test_list_tells_step_tokens_processes_and_time_of_each_checkpoint(workdir, capsys):
  first, second = (json.loads(line) for line in shown(capsys, "list", workdir, "--json").splitlines())
  assert (first["step"], first["tokens"], first["processes"], first["state"]) == (10, 10_000, 1, "saved")
  assert (second["step"], second["tokens"]) == (20, 20_000)
  folder = workdir / "checkpoints/20"
  assert second["size_bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
  assert abs(second["saved_at"] - folder.stat().st_mtime) < 60 and first["saved_at"] <= second["saved_at"]


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/20"])
def test_a_workdir_its_checkpoints_and_one_step_are_all_understood(workdir, capsys, place):
  steps = [json.loads(line)["step"] for line in shown(capsys, "list", workdir / place, "--json").splitlines()]
  assert steps == ([20] if place.endswith("20") else [10, 20])
  proven = [json.loads(line) for line in shown(capsys, "verify", workdir / place, "--json").splitlines()]
  assert [(one["step"], one["state"]) for one in proven] == [(step, "whole") for step in steps]


def test_verify_names_step_file_and_array_of_a_changed_byte_exits_1_and_moves_nothing(workdir, capsys):
  flip(changed := largest(workdir / "checkpoints/20"))
  before = everything(workdir)
  assert "saved" in shown(capsys, "list", workdir)  # which reads no array
  first, second = (json.loads(line) for line in shown(capsys, "verify", workdir, "--json", code=1).splitlines())
  assert (first["state"], first["reason"]) == ("whole", "")
  assert (second["step"], second["state"]) == (20, "damaged")
  assert str(changed) in second["reason"] and "array params/w" in second["reason"]
  text = shown(capsys, "verify", workdir, code=1)
  assert str(changed) in text and "damaged" in text and "whole" in text
  assert shown(capsys, "verify", workdir, "--step=10").count("whole") == 1
  assert everything(workdir) == before


def test_list_sees_damage_to_the_small_files(workdir, capsys):
  flip(next((workdir / "checkpoints/10/digests").glob("part-*")))
  first, second = (json.loads(line) for line in shown(capsys, "list", workdir, "--json").splitlines())
  assert (first["state"], second["state"]) == ("damaged", "saved")
  assert "part-00000-of-00001.json" in first["reason"] and first["tokens"] is None


def test_what_was_set_aside_or_never_finished_is_listed_with_the_reason_and_does_not_fail_verify(workdir, capsys):
  folder = workdir / "checkpoints"
  flip(largest(folder / "20"))
  abstract = {"params": {"w": jax.ShapeDtypeStruct((64, 128), np.float32)}}
  assert Checkpoints(folder, keep=5).restore_latest_good(abstract).step == 10
  shutil.copytree(folder / "10", folder / "30.orbax-checkpoint-tmp-0")
  for verb in ("list", "verify"):
    ten, *others = (json.loads(line) for line in shown(capsys, verb, workdir, "--json").splitlines())
    assert (ten["step"], ten["state"]) == (10, "saved" if verb == "list" else "whole")
    assert [(one["step"], one["state"]) for one in others] == [(20, "quarantined"), (30, "unfinished")]
    assert "array params/w" in others[0]["reason"] and "next save removes it" in others[1]["reason"]
    assert others[0]["path"] == str(folder / "damaged/20")
  # What was set aside can be looked at too.
  assert "damaged" in shown(capsys, "verify", folder / "damaged/20", code=1)


def test_a_bad_folder_or_step_is_refused_with_what_is_there(workdir, tmp_path, capsys):
  assert "is no folder; give a run's workdir" in shown(capsys, "list", tmp_path / "nowhere", code=2)
  (tmp_path / "empty").mkdir()
  for verb in ("list", "verify"):
    assert "holds no checkpoint; give a run's workdir" in shown(capsys, verb, tmp_path / "empty", code=2)
  assert "no checkpoint of step 15; it holds [10, 20]" in shown(capsys, "verify", workdir, "--step=15", code=2)
  both = shown(capsys, "verify", workdir / "checkpoints/20", "--step=10", code=2)
  assert "is step 20 and --step=10 was given" in both
  (tmp_path / "cut" / "5.orbax-checkpoint-tmp").mkdir(parents=True)
  assert "no finished checkpoint to verify" in shown(capsys, "verify", tmp_path / "cut", code=2)


@pytest.mark.parametrize("verb", ["list", "verify"])
def test_the_help_says_how_it_exits(verb, capsys):
  with pytest.raises(SystemExit) as ended:
    main(["checkpoint", verb, "--help"])
  assert ended.value.code == 0
  text = " ".join(capsys.readouterr().out.split())
  assert "Exits with 0" in text and "2 for a bad DIR" in text and ("1 if one is damaged" in text) == (verb == "verify")
