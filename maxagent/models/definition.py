"""A Flax module split once: what it computes on one side, its parameters as a plain nested dict on the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Definition:
  """The graph of a module without its arrays, and the logical axes of those arrays."""

  graph: nnx.GraphDef
  axes: dict[str, Any]

  def merge(self, params: dict[str, Any]) -> Any:
    """The module around these arrays (traced or not); cheap, made anew wherever it is called."""
    return nnx.merge(self.graph, params)


def define(build: Callable[[Array], nnx.Module]) -> Definition:
  """Splits what `build(key)` makes, without computing any array."""
  graph, state = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))
  axes = jax.tree.map(lambda variable: variable.get_metadata()["axes"], state, is_leaf=lambda x: isinstance(x, nnx.Variable))
  return Definition(graph, nnx.to_pure_dict(axes))


def plain(module: nnx.Module) -> dict[str, Any]:
  """The module's parameters as a nested dict of arrays."""
  return nnx.to_pure_dict(nnx.state(module))
