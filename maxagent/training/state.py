"""Everything that a step changes, as one pytree, and where each array of it lies on the mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from maxagent.config import Config
from maxagent.models import transformer
from maxagent.parallel.rules import Layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
  """Parameters (float32), the optimizer's state, and the number of batches trained on."""

  step: Int[Array, ""]
  params: Any
  opt_state: Any


def create(config: Config, optimizer: optax.GradientTransformation, layout: Layout) -> TrainState:
  """A fresh state, born sharded; the values depend on `config.seed` alone, never on the mesh."""

  def fresh(key: Array) -> TrainState:
    params = transformer.init(config.model, key)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))

  return jax.jit(fresh, out_shardings=shardings(config, optimizer, layout))(jax.random.key(config.seed))


def abstract(config: Config, optimizer: optax.GradientTransformation, layout: Layout) -> TrainState:
  """Shapes, dtypes and shardings of the state, for restoring and for ahead-of-time compilation."""
  params = transformer.abstract(config.model)
  shapes = TrainState(step=jax.ShapeDtypeStruct((), jnp.int32), params=params, opt_state=jax.eval_shape(optimizer.init, params))
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    shapes,
    shardings(config, optimizer, layout),
  )


def shardings(config: Config, optimizer: optax.GradientTransformation, layout: Layout) -> TrainState:
  """A sharding for every array: moments lie where their parameter lies, counters everywhere."""
  whole = layout.sharding()
  axes = transformer.logical_axes(config.model)
  params = jax.tree.map(lambda names: layout.sharding(*names), axes, is_leaf=lambda node: isinstance(node, tuple))
  placed = dict(jax.tree_util.tree_leaves_with_path(params))

  def beside_its_parameter(path: tuple[Any, ...], leaf: Any) -> Any:
    # An optimizer's moments repeat the parameters' tree somewhere inside its own state.
    return next((placed[path[i:]] for i in range(len(path)) if path[i:] in placed), whole)

  opt_state = jax.eval_shape(optimizer.init, transformer.abstract(config.model))
  return TrainState(step=whole, params=params, opt_state=jax.tree_util.tree_map_with_path(beside_its_parameter, opt_state))
