"""The real train step, compiled for a topology on a machine without one, in a process of its own."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maxagent import config as configs
from maxagent import errors
from maxagent.config import Config
from maxagent.errors import PlanError
from maxagent.plan.chips import Topology, examples
from maxagent.plan.hlo import Program, read_program

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# How libtpu says that a program is too large; the numbers are what it wants and what there is.
_TOO_LARGE = (
  re.compile(r"total memory required[^(]*\(([\d.]+)([KMGT]?)\)"),
  re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"),
)
_AS_IT_IS = ("params_bytes", "optimizer_bytes", "batch_bytes", "state_bytes", "peak_bytes", "versions")
_TAIL = 1500  # characters of the compiler's last words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """What the compiler said. Bytes are of one device."""

  mesh: dict[str, int]
  coords: tuple[tuple[int, ...], ...]  # of every device, in the order of the mesh
  params_bytes: int
  optimizer_bytes: int
  batch_bytes: int
  state_bytes: int  # of all devices together, every array once
  memory: Mapping[str, int] | None  # memory_analysis; None for a program that is too large to be made
  temp_bytes: int  # what it computes with; of a program that is too large, what it would need
  program: Program | None  # None where the compiler left no text
  seconds: float | None
  peak_bytes: int  # of the compiling process
  versions: dict[str, str]


def compile_for(config: Config, topology: Topology, *, save: Path | None = None) -> Compiled:
  """Compiles the step of the run's first phase; `save` is a folder that becomes, or is, a compilation cache of JAX.

  Raises:
    PlanError: no libtpu, a topology that libtpu refuses, or a compiler that failed.
    MeshError: the config's mesh does not fit the topology, or the model not the mesh.
  """
  require_libtpu()
  with tempfile.TemporaryDirectory(prefix="maxagent-plan-") as name:
    folder = Path(name)
    task = {"config": configs.to_json(config), "kind": topology.kind, "shape": topology.shape, "slices": topology.slices}
    (folder / "task.json").write_text(json.dumps(task))
    command = [sys.executable, "-m", "maxagent.plan.worker", name]
    done = subprocess.run(
      command, env=_environment(folder, save), capture_output=True, text=True, errors="replace", check=False
    )
    if not (folder / "result.json").exists():
      raise PlanError(f"the compiler for {topology} ended with code {done.returncode}: {done.stderr[-_TAIL:]}")
    result = json.loads((folder / "result.json").read_text())
    texts = list(folder.glob("*jit_step*.after_optimizations.txt"))
    program = read_program(texts[0].read_text(errors="replace")) if texts else None
    return _read(result, program, topology)


def require_libtpu() -> None:
  """Raises PlanError, with its cure, where the TPU's compiler is not installed."""
  if importlib.util.find_spec("libtpu") is None:
    raise PlanError("libtpu, the compiler for TPUs, is not installed; no TPU is needed: pip install 'maxagent[tpu]'.")


def _environment(folder: Path, save: Path | None) -> dict[str, str]:
  """A process that compiles for TPUs, looks for none, and leaves the text of its program in `folder`."""
  cache = {"JAX_COMPILATION_CACHE_DIR": str(save.absolute())} if save else {}
  kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TPU_", "LIBTPU_", "XLA_"))}
  return (
    kept
    | cache
    | {
      "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
      "JAX_PLATFORMS": "cpu",
      "TPU_SKIP_MDS_QUERY": "1",
      "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling only: others may hold its lock
      "TPU_ACCELERATOR_TYPE": "v5p-8",  # both silence a search for the TPU that is not here
      "TPU_WORKER_HOSTNAMES": "localhost",
      # Its own dump: jaxlib cannot read every instruction that libtpu gives back as a module.
      "XLA_FLAGS": f"--xla_dump_to={folder} --xla_dump_hlo_as_text=true --xla_dump_hlo_module_re=jit_step",
    }
  )


def _read(result: dict[str, Any], program: Program | None, topology: Topology) -> Compiled:
  message = result.get("message", "")
  needed = next((found for pattern in _TOO_LARGE if (found := pattern.search(message))), None)
  if "error" in result and not needed:
    raise _error(result["error"], message, topology)
  memory: dict[str, int] = result.get("memory", {})
  return Compiled(
    mesh=result["mesh"],
    coords=tuple(map(tuple, result["coords"])),
    memory=memory or None,
    temp_bytes=int(float(needed[1]) * _UNITS[needed[2]]) if needed else memory["temp"],
    program=program,
    seconds=result.get("seconds"),
    **{name: result[name] for name in _AS_IT_IS},
  )


def _error(kind: str, message: str, topology: Topology) -> Exception:
  """A refusal of ours as it was raised; anything else is the compiler's."""
  ours = getattr(errors, kind, None)
  if isinstance(ours, type) and issubclass(ours, errors.MaxagentError):
    return ours(f"{topology}: {message}")
  if "Topology layout" in message:
    known = examples()[topology.kind]
    return PlanError(f"libtpu refuses {topology}: {message[:_TAIL]}. Name a shape that can be rented, such as {known}.")
  return PlanError(
    f"libtpu failed on {topology}: {kind}: {message[:_TAIL]}. Try libtpu as jax pins it: pip install 'jax[tpu]'."
  )
