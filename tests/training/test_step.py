import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from maxagent.config import Config, Mesh
from maxagent.data.batch import Batch
from maxagent.parallel import Layout, make_mesh
from maxagent.parallel.processes import to_global
from maxagent.traces.schema import Flag, Role
from maxagent.training import optimizer as optimizers
from maxagent.training import state as states
from maxagent.training.state import TrainState
from maxagent.training.step import train_step

pytestmark = pytest.mark.smoke

ONE_DEVICE = Layout()
MakeBatch = Callable[..., Batch]


def _step(
  config: Config, batch: Batch, *, layout: Layout = ONE_DEVICE, state: TrainState | None = None
) -> tuple[TrainState, dict[str, Any]]:
  after, metrics = _compiled(config, layout)(state or _fresh(config, layout), to_global(batch, layout))
  return after, jax.device_get(metrics)


@functools.cache
def _fresh(config: Config, layout: Layout) -> TrainState:
  return states.create(config, optimizers.build(config), layout)


@functools.cache
def _compiled(config: Config, layout: Layout) -> Callable[..., Any]:
  return jax.jit(functools.partial(train_step, config=config, optimizer=optimizers.build(config), layout=layout))


def _deep(config: Config, *, microbatches: int = 1) -> Config:
  """With two further tokens predicted."""
  training = dataclasses.replace(config.training, microbatches=microbatches)
  return dataclasses.replace(config, model=dataclasses.replace(config.model, mtp_depth=2), training=training)


def _largest_difference(a: Any, b: Any) -> float:
  return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.max(np.abs(np.asarray(x) - np.asarray(y)))), a, b)))


@pytest.mark.parametrize("microbatches", [2, 4])
def test_accumulating_over_microbatches_equals_one_batch(tiny_config: Config, random_batch: MakeBatch, microbatches: int):
  batch = random_batch(tiny_config)
  roles = batch.roles.copy()
  roles[:4] = np.where(roles[:4] == Role.CALL, Role.PAD, roles[:4])  # the parts must not have equal denominators
  batch = dataclasses.replace(batch, roles=roles)
  whole, metrics = _step(tiny_config, batch)
  training = dataclasses.replace(tiny_config.training, microbatches=microbatches)
  parts, metrics_of_parts = _step(dataclasses.replace(tiny_config, training=training), batch)
  np.testing.assert_allclose(metrics_of_parts["loss"], metrics["loss"], rtol=1e-6)
  np.testing.assert_allclose(metrics_of_parts["grad_norm"], metrics["grad_norm"], rtol=1e-5)
  np.testing.assert_allclose(metrics_of_parts["sums"].role_tokens, metrics["sums"].role_tokens)
  assert _largest_difference(whole.params, parts.params) < 2e-5


def _meshes() -> list[Mesh]:
  return [Mesh(), Mesh(fsdp=2, tensor=2), Mesh(data=1, fsdp=2, context=2, tensor=2), Mesh(context=4, tensor=2)]


@pytest.mark.parametrize("mesh", _meshes(), ids=str)
def test_eight_devices_give_the_loss_and_gradient_of_one(tiny_config: Config, random_batch: MakeBatch, mesh: Mesh):
  batch = random_batch(tiny_config)
  alone, metrics = _step(tiny_config, batch)
  layout = Layout(make_mesh(mesh))
  together, metrics_of_eight = _step(tiny_config, batch, layout=layout)
  np.testing.assert_allclose(metrics_of_eight["loss"], metrics["loss"], rtol=1e-5)
  np.testing.assert_allclose(metrics_of_eight["grad_norm"], metrics["grad_norm"], rtol=1e-4)
  np.testing.assert_allclose(metrics_of_eight["sums"].role_loss, metrics["sums"].role_loss, rtol=1e-5)
  first_moments = [s.opt_state[0].mu for s in (alone, together)]
  assert _largest_difference(*first_moments) < 1e-6


UNSUPERVISED = {"no row of most devices": np.s_[1:], "every other row": np.s_[::2], "half of every row": np.s_[:, :16]}


def _silenced(batch: Batch, place: Any, *, padding: bool) -> Batch:
  """Without a supervised token there: padding, or documents whose tokens are all muted."""
  roles, segments, flags = batch.roles.copy(), batch.segments.copy(), batch.flags.copy()
  if padding:
    roles[place], segments[place] = Role.PAD, 0
  else:
    flags[place] |= np.uint8(Flag.MUTED)
  return dataclasses.replace(batch, roles=roles, segments=segments, flags=flags)


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(context=4, tensor=2)], ids=str)
def test_devices_without_a_supervised_token_change_neither_loss_nor_gradient(
  tiny_config: Config, random_batch: MakeBatch, mesh: Mesh
):
  config, layout = _deep(tiny_config), Layout(make_mesh(mesh))
  for place in UNSUPERVISED.values():
    for padding in (True, False):
      batch = _silenced(random_batch(config), place, padding=padding)
      alone, metrics = _step(config, batch)
      together, metrics_of_eight = _step(config, batch, layout=layout)
      assert metrics_of_eight["finite"] and metrics_of_eight["loss"] > 1
      np.testing.assert_allclose(metrics_of_eight["loss"], metrics["loss"], rtol=1e-5)
      np.testing.assert_allclose(metrics_of_eight["sums"].mtp_loss, metrics["sums"].mtp_loss, rtol=1e-5)
      np.testing.assert_allclose(metrics_of_eight["grad_norm"], metrics["grad_norm"], rtol=1e-4)
      assert _largest_difference(*(s.opt_state[0].mu for s in (alone, together))) < 1e-6


@pytest.mark.parametrize("mesh", [None, Mesh(fsdp=2, tensor=2)], ids=str)
def test_a_microbatch_without_a_supervised_token_counts_nothing(
  tiny_config: Config, random_batch: MakeBatch, mesh: Mesh | None
):
  layout = ONE_DEVICE if mesh is None else Layout(make_mesh(mesh))
  for padding in (True, False):
    batch = _silenced(random_batch(tiny_config), UNSUPERVISED["every other row"], padding=padding)
    whole, metrics = _step(_deep(tiny_config), batch)
    parts, metrics_of_parts = _step(_deep(tiny_config, microbatches=2), batch, layout=layout)
    np.testing.assert_allclose(metrics_of_parts["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics_of_parts["sums"].mtp_weight, metrics["sums"].mtp_weight, rtol=1e-6)
    assert _largest_difference(*(s.opt_state[0].mu for s in (whole, parts))) < 1e-6


def test_initialisation_does_not_depend_on_the_mesh(tiny_config: Config):
  alone = _fresh(tiny_config, ONE_DEVICE)
  for mesh in _meshes():
    together = _fresh(tiny_config, Layout(make_mesh(mesh)))
    assert _largest_difference(alone.params, together.params) == 0


@pytest.mark.parametrize("mesh", [None, Mesh(fsdp=2, tensor=2)], ids=str)
@pytest.mark.parametrize("padding", [True, False])
def test_a_batch_without_a_supervised_token_changes_nothing_but_the_step(
  tiny_config: Config, random_batch: MakeBatch, mesh: Mesh | None, padding: bool
):
  config, layout = _deep(tiny_config, microbatches=2), ONE_DEVICE if mesh is None else Layout(make_mesh(mesh))
  batch = _silenced(random_batch(config), np.s_[:], padding=padding)
  before = _fresh(config, layout)
  after, metrics = _step(config, batch, state=before, layout=layout)
  assert (metrics["loss"], metrics["grad_norm"], metrics["sums"].supervised) == (0, 0, 0) and metrics["finite"]
  assert _largest_difference((before.params, before.opt_state), (after.params, after.opt_state)) == 0
  assert after.step == 1


def test_a_loss_that_is_not_finite_changes_nothing_at_all(tiny_config: Config, random_batch: MakeBatch):
  before = _fresh(tiny_config, ONE_DEVICE)
  table = before.params["embedding"]["table"].at[3, 0].set(np.inf)
  before = dataclasses.replace(before, params=before.params | {"embedding": before.params["embedding"] | {"table": table}})
  after, metrics = _step(tiny_config, random_batch(tiny_config), state=before)
  assert not metrics["finite"]
  assert after.step == 0
  jax.tree.map(np.testing.assert_array_equal, after.opt_state, before.opt_state)
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)


def test_the_loss_falls_when_one_batch_is_repeated(tiny_config: Config, random_batch: MakeBatch):
  config = dataclasses.replace(tiny_config, optimizer=dataclasses.replace(tiny_config.optimizer, learning_rate=1e-2))
  batch = random_batch(config)
  losses, state = [], None
  for _ in range(10):
    state, metrics = _step(config, batch, state=state)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < losses[0] - 0.3


def test_clipping_bounds_what_reaches_the_moments(tiny_config: Config, random_batch: MakeBatch):
  config = dataclasses.replace(tiny_config, optimizer=dataclasses.replace(tiny_config.optimizer, clip_norm=0.01))
  after, metrics = _step(config, random_batch(config))
  assert metrics["grad_norm"] > 0.1  # reported before clipping
  first_moment = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(after.opt_state[0].mu)))
  np.testing.assert_allclose(first_moment, 0.01 * (1 - config.optimizer.b1), rtol=1e-4)
