"""A run that predicts further tokens, and a run without a supervised token."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from maxagent.cli.train import summary
from maxagent.cli.trained import load_trained
from maxagent.config import Checkpoint, Config, Data, Evaluation, Mesh, Model, Objective, Schedule, Source, Training
from maxagent.config.schema import WEIGHT_KEYS
from maxagent.errors import CheckpointError
from maxagent.evals.runner import Evaluator
from maxagent.models import transformer
from maxagent.parallel import Layout, make_mesh
from maxagent.tokenizer import Tokenizer
from maxagent.tracking.writers import read_metrics
from maxagent.training.loop import train

CLOCKS = ("seconds", "train/tokens_per_second")


@pytest.fixture
def config(small_data: Path) -> Config:
  return Config(
    model=Model(
      vocab_size=512, hidden_size=16, mlp_size=32, heads=2, kv_heads=2, head_size=8, pattern=("local", "global"),
      window_tokens=32, compute_dtype="float32", mtp_depth=1,
    ),
    mesh=Mesh(fsdp=2),
    data=Data(
      tokenizer=str(small_data / "tokenizer.model"),
      sources=tuple(Source(name=name, path=str(small_data / name)) for name in ("trace", "web")),
      sequence_tokens=64,
      global_batch=8,
    ),
    schedule=Schedule(warmup_steps=2),
    training=Training(steps=4),
    checkpoint=Checkpoint(every_steps=2),
    evaluation=Evaluation(every_steps=2, batches=1),
  )  # fmt: skip


class _Crash(Exception):
  """Stands for a process that dies."""


def _run(config: Config, workdir: Path, evaluate: Any = None) -> list[dict[str, Any]]:
  train(config, workdir, layout=Layout(make_mesh(config.mesh)), evaluate=evaluate)
  return [{k: v for k, v in r.items() if k not in CLOCKS} for r in read_metrics(workdir / "metrics.jsonl")]


def test_a_run_that_predicts_further_tokens_resumes_bit_for_bit_and_is_measured_without_them(config: Config, tmp_path: Path):
  layout = Layout(make_mesh(config.mesh))
  plain = dataclasses.replace(config, model=dataclasses.replace(config.model, mtp_depth=0))
  tokenizer = Tokenizer.load(config.data.tokenizer)
  evaluator, without = (Evaluator.open(c, tokenizer, layout) for c in (config, plain))
  calls: list[int] = []

  def evaluate(params: Any, step: int, stop: Any) -> dict[str, float]:
    calls.append(step)
    if calls == [2, 4, 2, 4]:
      raise _Crash
    measured = evaluator.losses(params)
    assert measured == without.losses(transformer.without_mtp(params, config.model)[0])
    assert not any("mtp" in name for name in measured)
    return measured

  whole = _run(config, tmp_path / "whole", evaluate)
  with pytest.raises(_Crash):
    _run(config, tmp_path / "broken", evaluate)
  assert _run(config, tmp_path / "broken", evaluate) == whole
  assert all(5 < record["train/loss/mtp"] < 8 for record in whole)
  found = load_trained(tmp_path / "broken")
  assert set(found.params) == {"embedding", "pattern", "final_norm"}
  assert evaluator.losses(found.params)["eval/loss/source/web"] == pytest.approx(whole[-1]["eval/loss/source/web"], rel=1e-6)


def test_further_tokens_can_be_left_out_of_a_later_run_and_not_be_made_up(config: Config, tmp_path: Path):
  deep = _run(config, tmp_path / "deep")
  plain = dataclasses.replace(config, model=dataclasses.replace(config.model, mtp_depth=0))
  later = Training(steps=2, init_from=str(tmp_path / "deep"))
  records = _run(dataclasses.replace(plain, training=later), tmp_path / "plain")
  assert records[0]["train/loss"] < deep[0]["train/loss"]  # the same batch, with what was learned since
  assert not any("train/loss/mtp" in record for record in records)
  again = Training(steps=2, init_from=str(tmp_path / "plain"))
  with pytest.raises(CheckpointError, match="mtp"):
    _run(dataclasses.replace(config, training=again), tmp_path / "again")


def test_a_run_without_a_supervised_token_goes_on_and_reports_no_loss(config: Config, tmp_path: Path):
  silent = Objective(overrides=tuple((key, 0.0) for key in WEIGHT_KEYS))
  # A filled hole weighs 1 whatever its role.
  formats = dataclasses.replace(config.data.formats, infill=0, fim=0, decision=0)
  config = dataclasses.replace(config, objective=silent, data=dataclasses.replace(config.data, formats=formats))
  seen: list[Any] = []
  records = _run(config, tmp_path, lambda params, step, stop: seen.append(jax.device_get(params)) or {})
  assert [record["step"] for record in records] == [1, 2, 3, 4]
  for record in records:
    assert (record["train/supervised_tokens"], record["train/grad_norm"]) == (0, 0)
    assert not {"train/loss", "train/loss/mtp"} & set(record)
    assert record["train/loss/source/web"] > 5  # what the model would have been asked, unweighted
  jax.tree.map(np.testing.assert_array_equal, *seen)
  assert summary(records[-1], report=Path("report.html")).endswith("no token of the last step was supervised")
