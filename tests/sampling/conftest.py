"""A small tokenizer over the words of the worlds, and a small model of every layer kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maxagent import environments
from maxagent.config import Model
from maxagent.environments.generate import generate_episode
from maxagent.tokenizer import Tokenizer, train


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
  folder: Path = tmp_path_factory.mktemp("tokenizer")
  texts = []
  for family in environments.families():
    world = environments.make(family, split="train")
    for seed in range(60):
      trace = generate_episode(world, seed, fault_rate=0.2, rng=np.random.default_rng(seed))
      texts += [segment.text + " " + (segment.args or "") for segment in trace.segments]
  return train(texts, folder / "tokenizer.model", vocab_size=512)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Model:
  return Model(
    vocab_size=tokenizer.vocab_size, hidden_size=32, mlp_size=48, heads=4, kv_heads=2, head_size=8, prefix=("global",),
    pattern=("local", "global"), repeats=2, suffix=("local",), window_tokens=8, compute_dtype="float32",
    attention_block_tokens=16,
  )  # fmt: skip
