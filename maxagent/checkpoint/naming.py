"""Every array of a state by name, so that a checkpoint holds names and numbers and no class of ours."""

from __future__ import annotations

from typing import Any

import jax

from maxagent.errors import CheckpointError

Named = dict[str, Any]  # "params/embed/table" -> leaf


def named_leaves(tree: Any) -> Named:
  """The leaves of any pytree by path: {"params": {"w": x}} gives {"params/w": x}; fields and tuple places are names too."""
  named: Named = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name in named:
      raise CheckpointError(f"two arrays of the state are both called {name!r}; rename one, a checkpoint knows arrays by name.")
    named[name] = leaf
  return named


def nested(named: Named) -> dict[str, Any]:
  """The same leaves as plain nested dicts: {"params/w": x} gives {"params": {"w": x}}."""
  tree: dict[str, Any] = {}
  for name, leaf in named.items():
    *parents, last = name.split("/")
    branch = tree
    for parent in parents:
      branch = branch.setdefault(parent, {})
    branch[last] = leaf
  return tree


def like(tree: Any, named: Named) -> Any:
  """A pytree built as `tree` is, holding the leaves of `named`."""
  return jax.tree.unflatten(jax.tree.structure(tree), [named[name] for name in named_leaves(tree)])
