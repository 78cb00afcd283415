import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from maxagent.config import Config, Model, Optimizer, Schedule, Training
from maxagent.models import transformer
from maxagent.training import optimizer, schedule

SMALL = Model(
  vocab_size=64, hidden_size=16, mlp_size=32, heads=2, kv_heads=1, head_size=8, repeats=2, prefix=("global",), mtp_depth=1
)  # fmt: skip


def test_the_schedule_warms_up_stays_and_decays():
  factor = schedule.factor(Schedule(warmup_steps=4, decay_steps=5, final_factor=0.1), 20)
  values = [float(factor(step)) for step in range(21)]
  np.testing.assert_allclose(values[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
  np.testing.assert_allclose(values[4:16], 1.0)
  np.testing.assert_allclose(values[16:], [0.82, 0.64, 0.46, 0.28, 0.1], rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_warmup_and_decay_the_rate_is_the_peak_from_the_first_step(warmup: int):
  rate = schedule.scaled(3e-3, Schedule(warmup_steps=warmup, decay_steps=0), 10)
  np.testing.assert_allclose([float(rate(step)) for step in range(10)], 3e-3, rtol=1e-6)


def test_muon_takes_every_matrix_between_embedding_and_head_and_nothing_else():
  axes = transformer.logical_axes(SMALL)
  routed = jax.tree.map(optimizer.muon_dimensions, axes, is_leaf=lambda node: isinstance(node, tuple))
  leaves = jax.tree_util.tree_leaves_with_path(
    routed, is_leaf=lambda node: node is None or isinstance(node, MuonDimensionNumbers)
  )
  adam = {jax.tree_util.keystr(path) for path, dims in leaves if dims is None}
  muon = {jax.tree_util.keystr(path) for path, dims in leaves if dims is not None}
  assert all("norm" in path or "embedding" in path for path in adam)
  assert not any("norm" in path or "embedding" in path for path in muon)
  # q k v o gate up down, in the prefix layer, in four stacked layers and in the depth, and the depth's projection
  assert len(muon) == 7 * 6 + 1


def test_muon_orthogonalises_each_layer_of_a_stack_by_itself():
  config = Config(
    model=SMALL,
    optimizer=Optimizer(name="muon", weight_decay=0.0),
    schedule=Schedule(warmup_steps=0),
    training=Training(steps=9),
  )
  params = transformer.init(SMALL, jax.random.key(0))
  built = optimizer.build(config)
  grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
  updates, _ = built.update(grads, built.init(params), params)
  down_RFD = np.asarray(updates["pattern"]["0"]["mlp"]["down"])
  for layer_FD in down_RFD:
    singular = np.linalg.svd(layer_FD, compute_uv=False)
    assert singular.max() / singular.min() < 2  # a raw Gaussian 32 x 16 matrix has about 5


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_spares_the_norms(name: str):
  config = Config(
    model=SMALL, optimizer=Optimizer(name=name, weight_decay=0.5), schedule=Schedule(warmup_steps=0), training=Training(steps=9)
  )
  params = transformer.init(SMALL, jax.random.key(0))
  built = optimizer.build(config)
  updates, _ = built.update(jax.tree.map(jnp.zeros_like, params), built.init(params), params)
  decayed = optax.apply_updates(params, updates)
  np.testing.assert_array_equal(decayed["final_norm"]["scale"], params["final_norm"]["scale"])
  for path in (("embedding", "table"), ("pattern", "0", "mlp", "up")):
    before, after = (functools.reduce(lambda tree, key: tree[key], path, tree) for tree in (params, decayed))
    assert np.abs(after).sum() < np.abs(before).sum()
