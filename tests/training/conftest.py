"""A hand-made batch and a tiny config for tests of the step, and a small run for those of the loop."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maxagent.config import Checkpoint, Config, Data, Evaluation, Mesh, Model, Objective, Schedule, Source, Training
from maxagent.data.batch import Batch
from maxagent.traces.schema import Role


@pytest.fixture
def tiny_config() -> Config:
  return Config(
    model=Model(
      vocab_size=64, hidden_size=16, mlp_size=32, heads=2, kv_heads=2, head_size=8, pattern=("local", "global"),
      window_tokens=8, compute_dtype="float32", attention_block_tokens=16,
    ),
    data=Data(sources=(Source(name="a", path="a"), Source(name="b", path="b")), sequence_tokens=32, global_batch=8),
    objective=Objective(chunk_tokens=16),
    schedule=Schedule(warmup_steps=0),
    training=Training(steps=10),
  )  # fmt: skip


@pytest.fixture
def random_batch() -> Callable[..., Batch]:
  """Random tokens of four roles (padding among them) and two sources, in up to three segments a row."""

  def make(config: Config, *, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    shape = (config.data.global_batch, config.data.sequence_tokens)
    zeros = np.zeros(shape, np.uint8)
    return Batch(
      tokens=rng.integers(0, config.model.vocab_size, shape).astype(np.int32),
      targets=rng.integers(0, config.model.vocab_size, shape).astype(np.int32),
      roles=rng.choice([Role.WEB, Role.TOOLS, Role.CALL, Role.PAD], shape).astype(np.uint8),
      statuses=zeros,
      sources=rng.integers(0, 2, shape).astype(np.uint8),
      flags=zeros,
      segments=np.sort(rng.integers(1, 4, shape), axis=1).astype(np.int32),
      positions=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy(),
    )

  return make


@pytest.fixture
def small_run(small_data: Path) -> Config:
  """Eight steps of eight rows of 64 tokens on the small data."""
  return Config(
    name="small",
    model=Model(
      vocab_size=512, hidden_size=16, mlp_size=32, heads=2, kv_heads=2, head_size=8, pattern=("local", "global"),
      window_tokens=32, compute_dtype="float32",
    ),
    mesh=Mesh(fsdp=2),
    data=Data(
      tokenizer=str(small_data / "tokenizer.model"),
      sources=tuple(Source(name=name, path=str(small_data / name)) for name in ("trace", "web")),
      sequence_tokens=64,
      global_batch=8,
    ),
    schedule=Schedule(warmup_steps=2),
    training=Training(steps=8),
    checkpoint=Checkpoint(every_steps=2, keep=2),
    evaluation=Evaluation(every_steps=4, batches=1),
  )  # fmt: skip
