"""Which mesh, recomputation and number of microbatches to take: thousands are ranked by arithmetic, the best few compiled."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

from jax.sharding import AbstractMesh

from maxagent.config import Config, Mesh
from maxagent.errors import MeshError, PlanError
from maxagent.parallel import AXES
from maxagent.parallel.mesh import mesh_shape
from maxagent.parallel.rules import check_model_fits
from maxagent.plan import estimate, flops
from maxagent.plan.chips import Topology, boxes
from maxagent.plan.collectives import Traffic
from maxagent.plan.estimate import Plan
from maxagent.plan.memory import least, local_tokens
from maxagent.plan.roofline import Roofline, roofline

_MICROBATCHES = (1, 2, 4, 8, 16)
_CONTEXTS = (1, 2, 4, 8)
_VARIED = ("data", "fsdp", "context", "tensor")
_MOST_CHIPS = 8192
_BF16, _F32 = 2, 4
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A config that could run, and what arithmetic says of it."""

  config: Config
  least_bytes: float
  roofline: Roofline

  @property
  def rank(self) -> tuple[float, float]:
    """The bound, then what would be waited for if nothing overlapped."""
    return self.roofline.best_seconds, self.roofline.worst_seconds

  def __str__(self) -> str:
    return settings(self.config)


def settings(config: Config) -> str:
  """What a search varies, as flags of the command line."""
  axes = " ".join(f"--config.mesh.{name}={getattr(config.mesh, name)}" for name in _VARIED)
  return f"{axes} --config.model.remat={config.model.remat} --config.training.microbatches={config.training.microbatches}"


def search(config: Config, where: Topology, *, compiled: int, progress: Progress = lambda _: None) -> list[Plan]:
  """Plans of the best `compiled` candidates, those that fit first, then by their bound.

  Raises:
    PlanError: arithmetic leaves none.
  """
  ranked = candidates(config, where)
  if not ranked:
    raise PlanError(
      f"no mesh of {where.devices:,} devices fits {config.name}: the batch, heads and widths do not divide, or the state is "
      "too large for any. Take a larger topology (--min-chips finds one) or another data.global_batch."
    )
  progress(f"{len(ranked)} settings could run by arithmetic; compiling the best {min(compiled, len(ranked))}")
  plans = []
  for number, candidate in enumerate(ranked[:compiled], 1):
    progress(f"{number}: {candidate}")
    plans.append(estimate.make(candidate.config, where))
    progress(f"   {plans[-1].memory.verdict()}")
  return sorted(plans, key=lambda p: (not p.memory.fits, p.roofline.best_seconds, p.roofline.worst_seconds))


def smallest(config: Config, kind: str, *, tries: int, progress: Progress = lambda _: None) -> Plan:
  """A plan of the smallest slice that the config fits on, with whatever settings it needs there.

  Raises:
    PlanError: none up to 8,192 chips does.
  """
  for where in boxes(kind, _MOST_CHIPS):
    ranked = sorted(candidates(config, where), key=lambda c: c.least_bytes)
    if not ranked:
      progress(f"{where}: too small by arithmetic")
      continue
    for candidate in ranked[:tries]:
      progress(f"{where}: {candidate}")
      plan = estimate.make(candidate.config, where)
      progress(f"   {plan.memory.verdict()}")
      if plan.memory.fits:
        return plan
  raise PlanError(f"{config.name} fits on no slice of up to {_MOST_CHIPS:,} {kind} chips; shrink the model or its rows.")


def candidates(config: Config, where: Topology) -> list[Candidate]:
  """Every setting that divides and whose least memory is there, best first."""
  parameters, hbm = flops.parameters(config.model), where.chip.hbm_bytes / where.chip.devices
  found = []
  for changed in _settings(config, where):
    mesh = _sizes(changed, where.devices)
    needed = least(changed, mesh, parameters)
    if needed <= hbm:
      found.append(Candidate(changed, needed, _by_arithmetic(changed, where, mesh, parameters)))
  return sorted(found, key=lambda candidate: candidate.rank)


def _sizes(config: Config, devices: int) -> dict[str, int]:
  return dict(zip(AXES, mesh_shape(config.mesh, devices), strict=True))


def _settings(config: Config, where: Topology) -> Iterator[Config]:
  """Those that divide everything that must be divided."""
  tensors = [n for n in range(1, config.model.kv_heads + 1) if config.model.kv_heads % n == 0]
  for tensor, context, remat, parts in itertools.product(tensors, _CONTEXTS, ("block", "none"), _MICROBATCHES):
    if where.devices % (tensor * context) or config.shapes[0][1] % parts:
      continue
    rest = where.devices // (tensor * context)
    for fsdp in (n for n in range(1, rest + 1) if rest % n == 0):
      if rest // fsdp % where.slices:
        continue  # only the data axis may cross slices
      mesh = Mesh(data=rest // fsdp, fsdp=fsdp, context=context, tensor=tensor)
      changed = dataclasses.replace(
        config,
        mesh=mesh,
        model=dataclasses.replace(config.model, remat=remat),
        training=dataclasses.replace(config.training, microbatches=parts),
      )
      if _divides(changed):
        yield changed


def _divides(config: Config) -> bool:
  shape = mesh_shape(config.mesh, math.prod(getattr(config.mesh, axis) for axis in AXES))
  try:
    for _, rows, length in config.shapes:
      batch = rows // config.training.microbatches
      check_model_fits(AbstractMesh(shape, AXES), config.model, batch=batch, length=length)
  except MeshError:
    return False
  return all(rows % config.training.microbatches == 0 for _, rows, _ in config.shapes)


def _by_arithmetic(config: Config, where: Topology, mesh: Mapping[str, int], parameters: int) -> Roofline:
  counted = flops.count(config)
  return roofline(config, where, mesh, flops=counted, products=None, sent=_expected(config, where, mesh, parameters))


def _expected(config: Config, where: Topology, mesh: Mapping[str, int], parameters: int) -> list[Traffic]:
  """What each axis has to send, whatever the compiler does: weights gathered, gradients summed, activations summed.

  Every ring is taken to lie along one dimension of the torus.
  """
  model, parts, chip = config.model, config.training.microbatches, where.chip
  passes = 2 + (model.remat == "block")
  layers = len(model.layers) + model.mtp_depth
  stream = local_tokens(config, mesh) * parts * model.hidden_size * _BF16
  weights = parameters / mesh["tensor"]
  keys = 2 * model.kv_heads * model.head_size / model.hidden_size / mesh["tensor"]
  sums = {
    "fsdp": parts * weights * _BF16 * (passes + 1),
    "data": 2 * weights * _F32 / mesh["fsdp"],
    "tensor": 2 * 2 * passes * layers * stream,
    "context": (passes + 1) * layers * stream * keys * mesh["context"],
  }
  made = []
  for axis, size in sums.items():
    members = mesh[axis]
    slow = axis == "data" and where.slices > 1
    rate = chip.network / chip.host_chips if slow else 2 * chip.link_bandwidth
    sent = size * (members - 1) / members
    network = "DCN" if slow else "ICI"
    made.append(
      Traffic(kind="expected", axes=axis, network=network, times=1, sent_bytes=sent, seconds=sent * chip.devices / rate)
    )
  return made
