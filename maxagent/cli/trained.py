"""A trained run, put back together from its workdir."""

from __future__ import annotations

import dataclasses
import math
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
from maxagent.parallel.rules import check_model_fits
from maxagent.tokenizer import Tokenizer
from maxagent.training.workdir import require_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """What evaluation and play need of a run: not the parameters of multi-token prediction, which are left on the disk."""

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
  config = stored_config(workdir)
  layout = Layout(_mesh(config))
  tokenizer = Tokenizer.load(config.data.tokenizer)
  shapes, model = transformer.without_mtp(transformer.abstract(config.model), config.model)
  abstract = jax.tree.map(
    lambda leaf, names: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.sharding(*names)),
    shapes,
    transformer.logical_axes(model),
  )
  restored = restore_params(workdir / "checkpoints", abstract, step)
  for skipped, reason in restored.skipped:
    print(f"step {skipped} is passed over: {reason}", file=sys.stderr)
  require_tokenizer(restored.metadata, tokenizer, checkpoint=workdir)
  return Trained(config=config, layout=layout, tokenizer=tokenizer, params=restored.state, step=restored.step)


def stored_config(workdir: Path) -> Config:
  """The config of the run in `workdir`.

  Raises:
    CheckpointError: no run is there.
  """
  path = workdir / "config.json"
  if not path.exists():
    raise CheckpointError(f"{workdir} holds no run (config.json is absent); give the --workdir of a `maxagent train`.")
  return configs.from_json(path.read_text())


def _mesh(config: Config) -> jax.sharding.Mesh:
  """The run's mesh, or as many devices along `data` as the batch can use: a run is looked at on other machines too."""
  rows, length = config.data.global_batch, config.data.sequence_tokens
  try:
    mesh = make_mesh(config.mesh)
    check_model_fits(mesh, config.model, batch=rows, length=length)
    return mesh
  except MeshError:
    used = math.gcd(rows, jax.device_count())
    print(f"the run's mesh does not fit {jax.device_count()} devices: {used} of them lie along `data` instead", file=sys.stderr)
    return make_mesh(Mesh(), jax.devices()[:used])
