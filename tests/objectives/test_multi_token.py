from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from maxagent.config import Config, Data, Model, Objective
from maxagent.data.batch import Batch
from maxagent.models import transformer
from maxagent.objectives.combine import LossSums, loss_sums, named_losses
from maxagent.objectives.multi_token import depth_shares
from maxagent.parallel import Layout
from maxagent.traces.schema import Role

T, V = 8, 32


def _config(depth: int, **objective: Any) -> Config:
  model = Model(
    vocab_size=V, hidden_size=8, mlp_size=8, heads=2, kv_heads=1, head_size=4, pattern=("global",), compute_dtype="float32",
    mtp_depth=depth,
  )  # fmt: skip
  return Config(model=model, data=Data(sequence_tokens=T, global_batch=2), objective=Objective(**objective))


def _batch() -> Batch:
  """Weights [1, 0.1, 1, 0 | 1, 1, 0, padding] and [1, 0 | 1, 0, padding...]."""
  rng = np.random.default_rng(0)
  W, G, P = Role.WEB, Role.GOAL, Role.PAD
  zeros = np.zeros((2, T), np.uint8)
  batch = Batch(
    tokens=rng.integers(0, V, (2, T), np.int32),
    targets=rng.integers(0, V, (2, T), np.int32),
    roles=np.array([[W, G, W, P, W, W, P, P], [W, P, W, P, P, P, P, P]], np.uint8),
    statuses=zeros,
    sources=zeros,
    flags=zeros,
    segments=np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 2, 2, 0, 0, 0, 0]], np.int32),
    positions=np.array([[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 0, 1, 0, 0, 0, 0]], np.int32),
  )
  return jax.tree.map(jax.device_put, batch)


@functools.partial(jax.jit, static_argnames=("config", "on"))
def _sums(params: Any, batch: Batch, *, config: Config, on: bool = True) -> tuple[jax.Array, LossSums]:
  shares = depth_shares(batch, config=config, step=0) if on else None
  return loss_sums(params, batch, config=config, layout=Layout(), mtp_shares=shares)


def _params(config: Config) -> Any:
  return jax.jit(transformer.init, static_argnums=0)(config.model, jax.random.key(0))


def test_every_depth_has_a_denominator_of_its_own():
  # Depth 1 keeps the weights 0.1, 1 and 1, depth 2 the 1 of place 2, and depth 3 has no target but one of weight 0.
  shares = depth_shares(_batch(), config=_config(3, mtp_weight=0.6), step=0)
  np.testing.assert_allclose(shares, [0.2 * 6.1 / 2.1, 0.2 * 6.1 / 1, 0], rtol=1e-6)


def test_the_objective_is_the_loss_plus_the_mean_over_depths_times_its_weight():
  config = _config(2, mtp_weight=0.6)
  numerator, sums = _sums(_params(config), _batch(), config=config)
  np.testing.assert_allclose(sums.mtp_weight, [2.1, 1], rtol=1e-6)
  means = sums.mtp_loss / sums.mtp_weight
  np.testing.assert_allclose(numerator / sums.weight, sums.loss / sums.weight + 0.6 * means.mean(), rtol=1e-6)
  named = named_losses(jax.device_get(sums), (), prefix="train/loss")
  assert named["train/loss/mtp"] == pytest.approx(float(means.mean()))


def test_weights_of_further_tokens_follow_the_schedule():
  config = _config(1, schedule=(("goal", ((0, 0.1), (10, 1.1))),))
  at = [float(depth_shares(_batch(), config=config, step=step)[0]) for step in (0, 5, 10)]
  np.testing.assert_allclose(at, [0.3 * (6 + w) / (2 + w) for w in (0.1, 0.6, 1.1)], rtol=1e-6)


def test_a_depth_without_a_target_counts_nothing_and_is_no_part_of_the_mean():
  config = _config(3)
  (numerator, sums), grads = jax.value_and_grad(lambda p: _sums(p, _batch(), config=config), has_aux=True)(_params(config))
  assert sums.mtp_weight[2] == 0 and np.isfinite(numerator)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["mtp"]["2"]))
  means = np.asarray(sums.mtp_loss[:2] / sums.mtp_weight[:2])
  assert named_losses(jax.device_get(sums), (), prefix="p")["p/mtp"] == pytest.approx(float(means.mean()))


def test_a_token_of_another_document_is_no_target():
  config = _config(1)
  batch = _batch()
  first, last = (_sums(_params(config), b, config=config)[1].mtp_loss for b in (batch, _changed(batch, targets=(0, 4))))
  np.testing.assert_array_equal(first, last)  # place 4 begins the second document: depth 1 would reach it from the first one
  assert (_sums(_params(config), _changed(batch, targets=(0, 5)), config=config)[1].mtp_loss != first).all()


def _changed(batch: Batch, *, targets: tuple[int, int]) -> Batch:
  return dataclasses.replace(batch, targets=(batch.targets.at[targets].add(1)) % V)


def test_the_loss_of_next_tokens_is_the_same_whether_further_ones_are_predicted_or_not():
  deep, plain = _config(2), _config(0)
  numerator, sums = _sums(_params(plain), _batch(), config=plain)
  assert numerator == sums.loss and sums.mtp_loss.shape == (0,)
  assert "train/loss/mtp" not in named_losses(jax.device_get(sums), (), prefix="train/loss")
  _, with_them = _sums(_params(deep), _batch(), config=deep)
  assert (with_them.loss, with_them.weight) == (sums.loss, sums.weight)
  # Outside training the parameters of further tokens are not even looked at.
  left_out, without = _sums(_params(plain), _batch(), config=deep, on=False)
  assert left_out == numerator and without.mtp_loss.shape == (0,)
