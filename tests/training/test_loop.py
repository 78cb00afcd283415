import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from maxagent.config import Checkpoint, Config, Mesh, Source, Training
from maxagent.data.build import BuildOptions, build
from maxagent.errors import NonFiniteError, TokenizerMismatchError, WorkdirBusyError, WorkdirMismatchError
from maxagent.parallel import Layout, make_mesh
from maxagent.tokenizer import train as train_tokenizer
from maxagent.tracking.writers import read_metrics
from maxagent.training.loop import Outcome, train

TIMES = ("train/tokens_per_second",)


class _Crash(Exception):
  """Stands for a process that dies in the middle of step 6."""


def _run(config: Config, workdir: Path, **options: Any) -> Outcome:
  return train(config, workdir, layout=Layout(make_mesh(config.mesh)), **options)


def _records(workdir: Path) -> list[dict[str, Any]]:
  """What training itself computed; a run that measures more often also reports its mixture more often."""
  records = read_metrics(workdir / "metrics.jsonl")
  return [{k: v for k, v in record.items() if k == "step" or (k.startswith("train/") and k not in TIMES)} for record in records]


def test_a_run_that_died_goes_on_as_if_nothing_had_happened(small_run: Config, tmp_path: Path):
  def crash_at_six(params: Any, step: int, stop: Any) -> dict[str, float]:
    if step == 6:
      raise _Crash
    return {}

  whole, broken = tmp_path / "whole", tmp_path / "broken"
  _run(small_run, whole)
  often = dataclasses.replace(small_run, evaluation=dataclasses.replace(small_run.evaluation, every_steps=1))
  with pytest.raises(_Crash):
    _run(often, broken, evaluate=crash_at_six)
  assert _run(small_run, broken).step == 8
  assert _records(broken) == _records(whole)  # every step once, every number to the last bit
  assert [record["step"] for record in _records(broken)] == list(range(1, 9))


def test_sigterm_saves_the_step_and_the_next_call_goes_on(small_run: Config, tmp_path: Path):
  def terminate_at_three(params: Any, step: int, stop: Any) -> dict[str, float]:
    if step == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return {"eval/at": float(step)}

  often = dataclasses.replace(small_run, evaluation=dataclasses.replace(small_run.evaluation, every_steps=1))
  outcome = _run(often, tmp_path, evaluate=terminate_at_three)
  assert outcome.preempted and outcome.step in (3, 4)
  assert (tmp_path / "checkpoints" / str(outcome.step)).is_dir()
  assert not _run(small_run, tmp_path).preempted
  assert [record["step"] for record in _records(tmp_path)] == list(range(1, 9))


def test_an_evaluation_that_sigterm_or_a_kill_cut_short_is_done_first_when_the_run_goes_on(small_run: Config, tmp_path: Path):
  calls: list[int] = []

  def stopped_at_four(params: Any, step: int, stop: Any) -> dict[str, float] | None:
    calls.append(step)
    if calls == [4]:
      os.kill(os.getpid(), signal.SIGTERM)
    if calls == [4, 4]:
      raise _Crash
    return None if stop() else {"eval/at": float(step)}

  assert _run(small_run, tmp_path, evaluate=stopped_at_four) == Outcome(step=4, preempted=True)
  with pytest.raises(_Crash):
    _run(small_run, tmp_path, evaluate=stopped_at_four)
  assert _run(small_run, tmp_path, evaluate=stopped_at_four) == Outcome(step=8, preempted=False)
  assert _run(small_run, tmp_path, evaluate=stopped_at_four) == Outcome(step=8, preempted=False)
  assert calls == [4, 4, 4, 8]
  records = read_metrics(tmp_path / "metrics.jsonl")
  assert [(record["step"], record.get("eval/at")) for record in records if record["step"] in (3, 4, 8)] == [
    (3, None),
    (4, 4),
    (8, 8),
  ]
  assert len(records) == 8 and all("train/loss" in record for record in records)


def test_a_run_that_could_not_begin_leaves_its_workdir_to_the_corrected_command(small_run: Config, tmp_path: Path):
  wrong = dataclasses.replace(small_run, model=dataclasses.replace(small_run.model, vocab_size=640))
  with pytest.raises(TokenizerMismatchError):
    _run(wrong, tmp_path)
  assert _run(dataclasses.replace(small_run, training=Training(steps=2)), tmp_path).step == 2


def test_two_runs_do_not_share_a_workdir(small_run: Config, tmp_path: Path):
  def second(params: Any, step: int, stop: Any) -> dict[str, float]:
    with pytest.raises(WorkdirBusyError, match=rf"in use by process {os.getpid()} on "):
      _run(small_run, tmp_path)
    return {"eval/refused": 1.0}

  _run(dataclasses.replace(small_run, training=Training(steps=4)), tmp_path, evaluate=second)
  assert read_metrics(tmp_path / "metrics.jsonl")[-1]["eval/refused"] == 1


def test_weights_of_another_tokenizer_are_refused(small_run: Config, small_data: Path, tmp_path: Path):
  _run(dataclasses.replace(small_run, training=Training(steps=2)), tmp_path / "first")
  tokenizer = train_tokenizer([(small_data / "text" / "abc.txt").read_text()], tmp_path / "tokenizer.model", vocab_size=512)
  build("web", tmp_path / "web", [small_data / "text"], tokenizer=tokenizer, options=BuildOptions(streams=8))
  training = Training(steps=2, init_from=str(tmp_path / "first"))
  sources = (Source(name="web", path=str(tmp_path / "web")),)
  data = dataclasses.replace(small_run.data, tokenizer=str(tmp_path / "tokenizer.model"), sources=sources)
  with pytest.raises(TokenizerMismatchError, match="were trained with tokenizer"):
    _run(dataclasses.replace(small_run, training=training, data=data), tmp_path / "second")


def test_another_mesh_goes_on_with_the_same_data_and_nearly_the_same_losses(small_run: Config, tmp_path: Path):
  def crash_at_eight(params: Any, step: int, stop: Any) -> dict[str, float]:
    if step == 8:
      raise _Crash
    return {}

  whole, moved = tmp_path / "whole", tmp_path / "moved"
  _run(small_run, whole)
  with pytest.raises(_Crash):
    _run(dataclasses.replace(small_run, checkpoint=Checkpoint(every_steps=4)), moved, evaluate=crash_at_eight)
  _run(dataclasses.replace(small_run, mesh=Mesh(data=1, fsdp=2, context=2, tensor=2)), moved)
  for ours, theirs in zip(_records(moved), _records(whole), strict=True):
    assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5)
    assert ours["train/supervised_tokens"] == theirs["train/supervised_tokens"]


def test_a_workdir_with_another_run_is_refused_and_the_fields_are_named(small_run: Config, tmp_path: Path):
  _run(dataclasses.replace(small_run, training=Training(steps=2)), tmp_path)
  with pytest.raises(WorkdirMismatchError, match=r"training\.steps: 2 != 8"):
    _run(small_run, tmp_path)


def test_a_tokenizer_of_another_size_is_refused(small_run: Config, tmp_path: Path):
  config = dataclasses.replace(small_run, model=dataclasses.replace(small_run.model, vocab_size=640))
  with pytest.raises(TokenizerMismatchError, match=r"has 512 tokens and model\.vocab_size is 640"):
    _run(config, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint_before_it(small_run: Config, tmp_path: Path):
  wild = dataclasses.replace(small_run.optimizer, learning_rate=1e30, clip_norm=None)
  config = dataclasses.replace(small_run, optimizer=wild, checkpoint=Checkpoint(every_steps=1))
  with pytest.raises(NonFiniteError, match=r"step \d+: loss .*inspect --workdir=WORKDIR --step=\d+"):
    _run(config, tmp_path)
  records = _records(tmp_path)
  assert records and all(record["train/loss"] is not None for record in records)
  saved = sorted(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir())
  assert saved and saved[-1] <= records[-1]["step"]


def test_init_from_takes_the_weights_and_nothing_else(small_run: Config, tmp_path: Path):
  first, second = tmp_path / "first", tmp_path / "second"
  _run(small_run, first)
  training = Training(steps=2, init_from=str(first / "checkpoints" / "8"))
  after = _run(dataclasses.replace(small_run, training=training, checkpoint=Checkpoint(every_steps=1)), second)
  assert after.step == 2
  assert _records(second)[0]["train/loss"] < _records(first)[0]["train/loss"]
  assert _records(first)[-1]["train/learning_rate"] > _records(second)[0]["train/learning_rate"]  # its warm-up begins anew
  assert json.loads((second / "config.json").read_text())["training"]["init_from"] == training.init_from
