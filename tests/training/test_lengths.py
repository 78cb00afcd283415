"""Runs whose rows become longer, and what their records say of the data."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maxagent.config import Checkpoint, Config, Formats, Mesh, Training
from maxagent.errors import MeshError
from maxagent.parallel import Layout, make_mesh
from maxagent.tracking.writers import read_metrics
from maxagent.training import loop
from maxagent.training.loop import Outcome, train

LENGTHS = ((1500.0, 128),)  # three steps of 8 rows of 64 tokens, then 4 rows of 128


class _Crash(Exception):
  """Stands for a process that dies."""


def _run(config: Config, workdir: Path, **options: Any) -> Outcome:
  return train(config, workdir, layout=Layout(make_mesh(config.mesh)), **options)


def _curve(workdir: Path) -> list[dict[str, Any]]:
  return [
    {k: v for k, v in record.items() if k.startswith("train/") and k != "train/tokens_per_second"}
    for record in read_metrics(workdir / "metrics.jsonl")
  ]


@pytest.fixture
def growing(small_run: Config) -> Config:
  data = dataclasses.replace(small_run.data, lengths=LENGTHS)
  return dataclasses.replace(small_run, mesh=Mesh(fsdp=2, context=2), data=data, checkpoint=Checkpoint(every_steps=3))


def _crashing(at: int) -> Callable[..., dict[str, float]]:
  def crash(params: Any, step: int, stop: Any) -> dict[str, float]:
    if step == at:
      raise _Crash
    return {}

  return crash


def test_a_run_whose_rows_become_longer_compiles_a_step_for_each_and_resumes_to_the_last_bit_on_either_side_of_a_switch(
  growing: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
  compiled: list[tuple[int, int]] = []
  original = loop.compile_step

  def noted(config: Config, optimizer: Any, layout: Layout, shape: tuple[int, int]) -> Any:
    compiled.append(shape)
    return original(config, optimizer, layout, shape)

  monkeypatch.setattr(loop, "compile_step", noted)
  _run(growing, tmp_path / "whole")
  assert compiled == [(8, 64), (4, 128)]
  often = dataclasses.replace(growing, evaluation=dataclasses.replace(growing.evaluation, every_steps=1))
  for crash_at in (5, 8):  # saved right before the first step of longer rows, and among them
    with pytest.raises(_Crash):
      _run(often, tmp_path / "broken", evaluate=_crashing(crash_at))
  compiled.clear()
  assert _run(growing, tmp_path / "broken").step == 8
  assert compiled == [(4, 128)]  # a phase that is over needs no step
  assert _curve(tmp_path / "broken") == _curve(tmp_path / "whole")


def test_rows_that_become_longer_leave_learning_rates_and_tokens_as_they_were(
  growing: Config, small_run: Config, tmp_path: Path
):
  _run(growing, tmp_path / "growing")
  _run(dataclasses.replace(small_run, mesh=growing.mesh), tmp_path / "same")
  ours, theirs = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("growing", "same"))
  for name in ("tokens", "train/learning_rate"):
    assert [record[name] for record in ours] == [record[name] for record in theirs]
  digests = [[record["train/data_digest"] for record in records] for records in (ours, theirs)]
  same = [a == b for a, b in zip(*digests, strict=True)]
  assert same == [True] * 3 + [False] * 5


def test_another_mesh_goes_on_with_longer_rows_and_the_same_digest(growing: Config, tmp_path: Path):
  _run(growing, tmp_path / "whole")
  with pytest.raises(_Crash):
    _run(
      dataclasses.replace(growing, evaluation=dataclasses.replace(growing.evaluation, every_steps=1)),
      tmp_path / "moved",
      evaluate=_crashing(5),
    )
  _run(dataclasses.replace(growing, mesh=Mesh(data=1, fsdp=4, tensor=2)), tmp_path / "moved")
  for ours, theirs in zip(_curve(tmp_path / "moved"), _curve(tmp_path / "whole"), strict=True):
    assert ours["train/data_digest"] == theirs["train/data_digest"]
    assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5)


def test_a_mesh_that_cannot_hold_rows_to_come_is_refused_before_the_first_step_unless_the_run_ends_before_them(
  growing: Config, tmp_path: Path
):
  wide = dataclasses.replace(growing, mesh=Mesh(fsdp=2))
  cure = r"from 1500 content tokens on, a step has 4 rows of 128 tokens\. .*mesh\.data x mesh\.fsdp = 4 and mesh\.context = 2"
  with pytest.raises(MeshError, match=cure):
    _run(wide, tmp_path)
  assert not (tmp_path / "metrics.jsonl").exists()
  assert _run(dataclasses.replace(wide, training=Training(steps=2)), tmp_path).step == 2


def test_records_tell_the_supervised_share_of_every_source_and_its_passes(small_run: Config, tmp_path: Path):
  _run(small_run, tmp_path)
  records = read_metrics(tmp_path / "metrics.jsonl")
  for record in records:
    shares = [record[f"train/supervised/{name}"] for name in ("trace", "web")]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0
  assert all(records[-1][f"mixture/epochs/{name}"] > 0 for name in ("trace", "web"))


def test_supervised_shares_are_reached_by_a_run_that_asks_for_them(small_run: Config, tmp_path: Path):
  plain = Formats(infill=0, fim=0, decision=0)  # a filled hole weighs 1 whatever its role, which no index can know
  data = dataclasses.replace(small_run.data, shares_of="supervised", formats=plain)
  objective = dataclasses.replace(small_run.objective, overrides=(("obs", 0.0), ("tools", 0.0), ("goal", 0.0)))
  config = dataclasses.replace(small_run, data=data, objective=objective, training=Training(steps=40))
  _run(config, tmp_path)
  records = read_metrics(tmp_path / "metrics.jsonl")
  tokens = [record["train/supervised_tokens"] for record in records]
  traces = [record["train/supervised/trace"] * n for record, n in zip(records, tokens, strict=True)]
  assert sum(traces) / sum(tokens) == pytest.approx(0.5, abs=0.03)
  assert records[-1]["mixture/realised/trace"] > 0.6
