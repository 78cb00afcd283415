"""A plan: what the compiler said of a config on a topology, and what follows from it for the run."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata as metadata
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maxagent import config as configs
from maxagent import storage
from maxagent.config import Config
from maxagent.plan import flops as counting
from maxagent.plan.chips import Topology, topology
from maxagent.plan.collectives import Places, Traffic, traffic
from maxagent.plan.compile import Compiled, compile_for, require_libtpu
from maxagent.plan.flops import Flops
from maxagent.plan.memory import Memory, measured
from maxagent.plan.roofline import ASSUMPTIONS, Roofline, roofline
from maxagent.tracking.writers import replace_file

_DAY = 86_400.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
  """The run at some speed."""

  mfu: float
  step_seconds: float
  tokens_per_second: float
  days: float
  chip_hours: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Everything that is told of one config on one topology. Bytes, operations and collectives are of one device."""

  config: Config
  topology: Topology
  mesh: dict[str, int]
  parameters: int
  flops: Flops
  memory: Memory
  products: float | None  # the compiled program's operations; None where it was too large to be made
  traffic: tuple[Traffic, ...]
  roofline: Roofline
  unread_loops: int
  state_bytes: int  # of a checkpoint
  compile_seconds: float | None
  compile_bytes: int
  versions: dict[str, str]

  @property
  def best(self) -> Pace:
    """The speed that nothing exceeds."""
    return self.at(self.roofline.best_mfu)

  @property
  def usual(self) -> Pace:
    """The speed to count on: 40%, where the bound is not lower."""
    return self.at(min(0.4, self.roofline.best_mfu))

  def at(self, mfu: float) -> Pace:
    """The run at that share of the peak."""
    seconds = self.roofline.model_seconds / mfu
    days = seconds * self.config.training.steps / _DAY
    return Pace(
      mfu=mfu,
      step_seconds=seconds,
      tokens_per_second=self.config.tokens_per_step / seconds,
      days=days,
      chip_hours=days * 24 * self.topology.chips,
    )

  @property
  def assumptions(self) -> tuple[str, ...]:
    """What the figures take for granted, with what is particular to this plan."""
    more = []
    if self.unread_loops:
      more.append(
        f"{self.unread_loops} loops of the program turn as often as the data says: what they send is counted once, and compute "
        "is counted from the config."
      )
    if self.compile_seconds is None:
      more.append(
        "The program was too large to be made: temporary memory is what the compiler asked for, and code is not known."
      )
    if self.products is None:
      more.append("The compiler left no text: compute is counted from the config, and collectives are left out.")
    if later := self.config.shapes[1:]:
      lengths = ", ".join(f"{length:,}" for _, _, length in later)
      more.append(f"This is the run's first phase; the later ones have rows of {lengths} tokens.")
    return (*ASSUMPTIONS, *more)

  def to_dict(self) -> dict[str, Any]:
    """As JSON holds it; what follows from the rest is under `run`, for readers of `--json`."""
    parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    return parts | {
      "config": json.loads(configs.to_json(self.config)),
      "topology": self.topology.name,
      "slices": self.topology.slices,
      "flops": dataclasses.asdict(self.flops),
      "memory": dataclasses.asdict(self.memory),
      "roofline": dataclasses.asdict(self.roofline),
      "traffic": [dataclasses.asdict(one) for one in self.traffic],
      "run": {
        "fits": self.memory.fits,
        "spare_bytes": self.memory.spare,
        "chips": self.topology.chips,
        "bound": self.roofline.bound,
        "best": dataclasses.asdict(self.best),
        "model_flops_per_token": self.flops.model,
        "assumptions": self.assumptions,
      },
    }

  @classmethod
  def from_dict(cls, record: Mapping[str, Any]) -> Plan:
    """The inverse of `to_dict`."""
    own = {f.name: record[f.name] for f in dataclasses.fields(cls)}
    return cls(
      **own
      | {
        "config": configs.from_json(json.dumps(record["config"])),
        "topology": topology(record["topology"], record["slices"]),
        "flops": Flops(**record["flops"]),
        "memory": Memory(**record["memory"]),
        "traffic": tuple(Traffic(**one) for one in record["traffic"]),
        "roofline": Roofline(**record["roofline"]),
      }
    )


def make(config: Config, where: Topology, *, save: Path | None = None) -> Plan:
  """Compiles, or reads what this code and these compilers said of it before; `save`, a cache of JAX, keeps the program too.

  Raises:
    PlanError: no libtpu, or a topology that it refuses.
    MeshError: the config does not fit the topology.
  """
  require_libtpu()
  kept = storage.cache_folder() / "plans" / f"{_key(config, where)}.json"
  if save is None and kept.exists():
    return Plan.from_dict(json.loads(kept.read_text()))
  plan = of(config, where, compile_for(config, where, save=save))
  kept.parent.mkdir(parents=True, exist_ok=True)
  replace_file(kept, json.dumps(plan.to_dict()).encode())
  return plan


def of(config: Config, where: Topology, compiled: Compiled) -> Plan:
  """What follows from the compiler's answer."""
  flops, program = counting.count(config), compiled.program
  sent = traffic(program, Places(where, compiled.mesh, compiled.coords)) if program else ()
  products = program.product_flops if program else None
  return Plan(
    config=config,
    topology=where,
    mesh=compiled.mesh,
    parameters=counting.parameters(config.model),
    flops=flops,
    memory=measured(config, where, compiled),
    products=products,
    traffic=sent,
    roofline=roofline(
      config, where, compiled.mesh, flops=flops, products=None if program and program.unread_loops else products, sent=sent
    ),
    unread_loops=program.unread_loops if program else 0,
    state_bytes=compiled.state_bytes,
    compile_seconds=compiled.seconds,
    compile_bytes=compiled.peak_bytes,
    versions=compiled.versions,
  )


def _key(config: Config, where: Topology) -> str:
  """Of everything that makes the program: another config, compiler or line of code is another plan."""
  digest = hashlib.sha256(configs.to_json(config).encode())
  digest.update(str(where).encode())
  for name in ("jax", "jaxlib", "libtpu"):
    digest.update(metadata.version(name).encode())
  for package in ("maxagent", "maxagent_kernels"):
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    for path in sorted(root.rglob("*.py")):
      digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
  return digest.hexdigest()[:32]
