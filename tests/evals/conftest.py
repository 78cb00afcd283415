"""A small tokenizer over the words of the worlds."""

from __future__ import annotations

import numpy as np
import pytest

from maxagent import environments
from maxagent.environments.generate import generate_episode
from maxagent.tokenizer import Tokenizer, train


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
  texts = []
  for family in environments.families():
    world = environments.make(family, split="train")
    for seed in range(40):
      trace = generate_episode(world, seed, fault_rate=0.2, rng=np.random.default_rng(seed))
      texts += [segment.text + " " + (segment.args or "") for segment in trace.segments]
  return train(texts, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", vocab_size=480)
