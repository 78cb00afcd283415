from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from maxagent.config import Config, Evaluation, Mesh, Model
from maxagent.evals.runner import Evaluator, write_episodes
from maxagent.models import transformer
from maxagent.parallel import Layout, make_mesh
from maxagent.tokenizer import Tokenizer
from maxagent.traces.schema import Trace


@pytest.fixture(scope="module")
def config(tokenizer: Tokenizer) -> Config:
  model = Model(
    vocab_size=tokenizer.vocab_size, hidden_size=16, mlp_size=16, heads=2, kv_heads=2, head_size=8, pattern=("local", "global"),
    compute_dtype="float32",
  )  # fmt: skip
  evaluation = Evaluation(families=("files", "kv"), episodes=3, slots=8, context_tokens=256, turn_limit=3)
  return Config(model=model, evaluation=evaluation)


@pytest.fixture(scope="module")
def params(config: Config) -> Any:
  return jax.jit(transformer.init, static_argnums=0)(config.model, jax.random.key(0))


@pytest.mark.smoke
def test_an_evaluation_plays_every_family_clean_and_with_faults(
  config: Config, params: Any, tokenizer: Tokenizer, tmp_path: Path
):
  evaluator = Evaluator(config, tokenizer, Layout(make_mesh(Mesh())), batches={})
  metrics, episodes = evaluator(params, 7)
  for family in ("files", "kv"):
    for name in ("success", "recovery", "invalid_call"):
      assert (
        0
        <= metrics[f"eval/{family}/{name}_low"]
        <= metrics[f"eval/{family}/{name}"]
        <= metrics[f"eval/{family}/{name}_high"]
        <= 1
      )
  assert {"eval/success", "eval/recovery"} <= set(metrics)
  assert [episode["kind"] for episode in episodes] == (["clean"] * 3 + ["recovery"] * 3) * 2
  path = write_episodes(tmp_path, episodes)
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert lines == episodes and all(line["step"] == 7 for line in lines)
  assert {Trace.from_json(json.dumps(line["trace"])).env_seed for line in lines} == {0, 1, 2}


def test_the_same_parameters_measure_the_same_twice(config: Config, params: Any, tokenizer: Tokenizer):
  evaluator = Evaluator(config, tokenizer, Layout(make_mesh(Mesh())), batches={})
  assert evaluator(params, 1) == evaluator(params, 1)


def test_an_evaluation_without_families_and_batches_measures_nothing(config: Config, params: Any, tokenizer: Tokenizer):
  silent = Config(model=config.model)
  assert Evaluator(silent, tokenizer, Layout(), batches={})(params, 1) == ({}, [])
