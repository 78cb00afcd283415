"""A small agent on a laptop: reads real text and executed traces half and half, then acts in two environments.

Reproduces: `make train`. Hardware: 2 CPU cores as an 8-device mesh. Hours: 0.15.
Command: maxagent train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from maxagent.config import (
  Checkpoint,
  Config,
  Data,
  Evaluation,
  Formats,
  Model,
  Objective,
  Optimizer,
  Schedule,
  Source,
  Training,
)


def get_config(data: str = "runs/quickstart/data") -> Config:
  """`data`: the folder that `make train` fills: tokenizer.model, trace and web."""
  return Config(
    name="quickstart",
    model=Model(
      vocab_size=2048, hidden_size=128, mlp_size=192, heads=4, kv_heads=4, head_size=32, pattern=("local", "global"), repeats=2,
      window_tokens=16, copy_init=True, attention_block_tokens=64, compute_dtype="float32", remat="none",
    ),
    data=Data(
      tokenizer=f"{data}/tokenizer.model",
      sources=(Source(name="trace", path=f"{data}/trace"), Source(name="web", path=f"{data}/web")),
      sequence_tokens=256,
      global_batch=8,
      # 4M tokens teach to act or to fill holes: with the default formats the agent solved 25% of its episodes, without 97%.
      formats=Formats(infill=0, fim=0, decision=0),
    ),
    # With text at its full weight, whether so short a run learned to copy the names of its tools hung on the order of the text:
    # 28% or 99% of its episodes.
    objective=Objective(overrides=(("web", 0.2),)),
    optimizer=Optimizer(name="adamw", learning_rate=2e-3),
    schedule=Schedule(warmup_steps=100, decay_steps=450),
    training=Training(steps=2200),
    checkpoint=Checkpoint(every_steps=200),
    evaluation=Evaluation(every_steps=1100, families=("kv", "files"), context_tokens=384),
  )  # fmt: skip
