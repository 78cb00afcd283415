"""A trained run, put back together from its workdir."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax

from maxagent import config as configs
from maxagent.checkpoint import restore_params
from maxagent.config import Config, Mesh
from maxagent.errors import CheckpointError, MeshError
from maxagent.models import transformer
from maxagent.parallel import Layout, make_mesh
from maxagent.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """What evaluation and play need of a run."""

  config: Config
  layout: Layout
  tokenizer: Tokenizer
  params: Any
  step: int


def load_trained(workdir: Path, *, step: int | None = None) -> Trained:
  """The run in `workdir` at `step`, or at its newest good checkpoint, on the devices at hand.

  Raises:
    CheckpointError: no run, or no good checkpoint, is there.
  """
  path = workdir / "config.json"
  if not path.exists():
    raise CheckpointError(f"{workdir} holds no run (config.json is absent); give the --workdir of a `maxagent train`.")
  config = configs.from_json(path.read_text())
  layout = Layout(_mesh(config))
  abstract = jax.tree.map(
    lambda leaf, names: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.sharding(*names)),
    transformer.abstract(config.model),
    transformer.logical_axes(config.model),
  )
  restored = restore_params(workdir / "checkpoints", abstract, step)
  return Trained(
    config=config, layout=layout, tokenizer=Tokenizer.load(config.data.tokenizer), params=restored.state, step=restored.step
  )


def _mesh(config: Config) -> jax.sharding.Mesh:
  """The run's mesh, or all devices along `data` where it does not fit: a run is looked at on other machines too."""
  try:
    return make_mesh(config.mesh)
  except MeshError:
    count = jax.device_count()
    print(f"the run's mesh does not fit {count} device{'s' * (count > 1)}: all lie along `data` instead", file=sys.stderr)
    return make_mesh(Mesh())
