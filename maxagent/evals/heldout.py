"""Loss on held-out documents, by source and by role."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from maxagent.config import Config
from maxagent.data.batch import Batch
from maxagent.objectives.combine import LossSums, loss_sums, named_losses
from maxagent.parallel.processes import to_global
from maxagent.parallel.rules import Layout


def heldout_losses(params: Any, batches: Iterable[Batch], *, config: Config, layout: Layout) -> dict[str, float]:
  """Mean cross-entropy in nats per token: eval/loss/source/<source> and eval/loss/role/<role>.

  Sums over all batches are divided once, so the numbers do not depend on how the documents fell into batches. `batches` hold
  this process's rows.
  """
  # Dispatched one after the other and read once at the end.
  parts = [
    _sums(params, to_global(batch, layout, global_batch=config.data.global_batch), config=config, layout=layout)
    for batch in batches
  ]
  if not parts:
    return {}
  fetched = jax.device_get(parts)
  total = jax.tree.map(lambda *leaves: np.asarray(np.sum(np.asarray(leaves, np.float64), axis=0)), *fetched)
  return named_losses(total, tuple(source.name for source in config.data.sources), prefix="eval/loss")


@functools.partial(jax.jit, static_argnames=("config", "layout"))
def _sums(params: Any, batch: Batch, *, config: Config, layout: Layout) -> LossSums:
  _, sums = loss_sums(params, batch, config=config, layout=layout)
  whole = layout.sharding()  # replicated: every process reads the same sums
  return sums if whole is None else jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, whole), sums)
