"""Compiles the train step for a topology and writes what came of it: the child process behind `plan.compile`.

    python -m maxagent.plan.worker FOLDER

reads FOLDER/task.json and writes FOLDER/result.json. It is a process of its own, since libtpu reads its settings once, ends the
process at a defect of its own, and keeps its memory.
"""

from __future__ import annotations

import importlib.metadata as metadata
import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from maxagent import config as configs
from maxagent.config import Config
from maxagent.data.batch import FIELD_DTYPES
from maxagent.errors import MaxagentError
from maxagent.parallel import Layout, make_mesh
from maxagent.parallel.rules import check_model_fits
from maxagent.plan.chips import CHIPS, Topology
from maxagent.training import optimizer as optimizers
from maxagent.training import state as states
from maxagent.training.loop import compile_step

_MEMORY = ("generated_code", "argument", "output", "alias", "temp")


def main() -> None:
  """Does the task."""
  folder = Path(sys.argv[1])
  task = json.loads((folder / "task.json").read_text())
  config = configs.from_json(task["config"])
  topology = Topology(kind=task["kind"], shape=tuple(task["shape"]), slices=task["slices"])
  result: dict[str, Any] = {}
  try:
    _compile(config, _mesh(config, topology), result)
  except (MaxagentError, jax.errors.JaxRuntimeError) as error:  # told to the parent; anything else is a defect and ends this
    result |= {"error": type(error).__name__, "message": str(error)}
  result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  (folder / "result.json").write_text(json.dumps(result))


def _mesh(config: Config, topology: Topology) -> Mesh:
  options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
  if layout := CHIPS[topology.kind].layout:
    options["chip_config_name"] = layout
  described = topologies.get_topology_desc(topology.name, "tpu", **options)
  mesh = make_mesh(config.mesh, described.devices)
  _, rows, length = config.shapes[0]
  check_model_fits(mesh, config.model, batch=rows // config.training.microbatches, length=length)
  return mesh


def _compile(config: Config, mesh: Mesh, result: dict[str, Any]) -> None:
  """Fills `result` as far as it gets: the places of the state are known before, and a program that is too large never is."""
  layout, optimizer = Layout(mesh), optimizers.build(config)
  state = states.abstract(config, optimizer, layout)
  rows = layout.sharding("batch", "length")
  assert rows is not None
  result |= {
    "mesh": dict(mesh.shape),
    "coords": [list(device.coords) for device in mesh.devices.flat],
    "params_bytes": _bytes_of_one(state.params),
    "optimizer_bytes": _bytes_of_one(state.opt_state),
    "batch_bytes": math.prod(rows.shard_shape(config.shapes[0][1:])) * sum(np.dtype(d).itemsize for d in FIELD_DTYPES.values()),
    "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
    "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu")},
  }  # fmt: skip
  began = time.perf_counter()
  step: Any = compile_step(config, optimizer, layout)
  result["seconds"] = time.perf_counter() - began
  memory = step.memory_analysis()
  result["memory"] = {name: getattr(memory, f"{name}_size_in_bytes") for name in _MEMORY}


def _bytes_of_one(tree: Any) -> int:
  """What one device holds of a tree."""
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
  main()
