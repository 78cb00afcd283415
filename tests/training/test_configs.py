"""Every file of configs/ builds at its full size, fits its pod, and trains a step when shrunk."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import pytest

from maxagent import config as configs
from maxagent.config import Config, Mesh
from maxagent.data.batch import Batch
from maxagent.parallel import Layout
from maxagent.parallel.mesh import AXES, mesh_shape
from maxagent.parallel.processes import to_global
from maxagent.parallel.rules import mesh_axes
from maxagent.training import optimizer as optimizers
from maxagent.training import state as states
from maxagent.training.step import train_step

FILES = sorted((pathlib.Path(__file__).resolve().parents[2] / "configs").glob("*.py"))
# (least, greatest) millions of parameters that the name promises, and the devices that the file is meant for.
SIZES = {"base_100m": (80, 160, 16), "base_1b": (800, 1600, 64), "base_8b": (7000, 9500, 512)}
every_file = pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])


@functools.cache
def _config(path: pathlib.Path) -> Config:
  return configs.load([f"--config={path}"])


@every_file
def test_a_config_builds_at_its_full_size(path: pathlib.Path):
  config = _config(path)
  state = states.abstract(config, optimizers.build(config), Layout())
  millions = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)) / 1e6
  low, high, _ = SIZES.get(path.stem, (0, 10, 8))
  assert low < millions < high
  assert configs.from_json(configs.to_json(config)) == config


@every_file
def test_a_config_fits_the_devices_that_it_is_meant_for(path: pathlib.Path):
  config = _config(path)
  shape = dict(zip(AXES, mesh_shape(config.mesh, SIZES.get(path.stem, (0, 0, 8))[2]), strict=True))
  model, data = config.model, config.data
  for logical, size in {
    "batch": data.global_batch // config.training.microbatches,
    "length": data.sequence_tokens,
    "vocab": model.vocab_size,
    "heads": model.heads,
    "kv_heads": model.kv_heads,
    "mlp": model.mlp_size,
    "embed": model.hidden_size,
  }.items():
    assert size % math.prod(shape[axis] for axis in mesh_axes(logical)) == 0, logical


@every_file
def test_a_shrunk_copy_trains(path: pathlib.Path, random_batch: Callable[..., Batch]):
  config = _config(path)
  model = dataclasses.replace(
    config.model, vocab_size=64, hidden_size=16, mlp_size=32, heads=4, kv_heads=2, head_size=8, repeats=1, window_tokens=8
  )
  data = dataclasses.replace(config.data, sequence_tokens=32, global_batch=8)
  schedule = dataclasses.replace(config.schedule, warmup_steps=0, decay_steps=0)
  small = dataclasses.replace(config, model=model, data=data, schedule=schedule, mesh=Mesh())
  optimizer, layout, batch = optimizers.build(small), Layout(), random_batch(small)
  step = jax.jit(functools.partial(train_step, config=small, optimizer=optimizer, layout=layout))
  state = states.create(small, optimizer, layout)
  losses = []
  for _ in range(3):
    state, metrics = step(state, to_global(batch, layout))
    losses.append(float(metrics["loss"]))
  assert np.isfinite(losses).all() and losses[-1] < losses[0]
