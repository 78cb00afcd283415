"""What TPU chips can do, and what a topology's name means. Figures are per chip and published, peak, never measured here."""

from __future__ import annotations

import dataclasses
import math
import re

from maxagent.errors import PlanError

# The data-center network of a host where its page names none: the typical figure of
# https://jax-ml.github.io/scaling-book/tpus ("typically around 2.5e10 bytes/second per host").
_TYPICAL_NETWORK = 25e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One kind of chip. Bandwidths are bytes per second; a link's is one way."""

  peak_flops: float  # bfloat16 products and sums per second
  hbm_bytes: float  # what libtpu 0.0.52 says a program may have ("exceeds available HBM"), a little below what is sold
  hbm_bandwidth: float
  link_bandwidth: float  # to one neighbour
  dimensions: int  # of the torus: two links each
  ring: int  # a dimension of a multiple of so many chips closes to a ring
  host_chips: int
  network: float = _TYPICAL_NETWORK  # of a host
  devices: int = 1  # that JAX sees of it; they share all of the above
  layout: str | None = None  # libtpu's name for a chip whose cores work as one device, where that is not its default
  source: str


# Link bandwidth: v4 of the scaling book, the others the page's "bidirectional per chip" over links and directions.
CHIPS = {
  "v4": Chip(
    peak_flops=275e12, hbm_bytes=30.75 * 2**30, hbm_bandwidth=1.2e12, link_bandwidth=4.5e10, dimensions=3, ring=4, host_chips=4,
    layout="megacore", source="https://jax-ml.github.io/scaling-book/tpus",
  ),
  "v5e": Chip(
    peak_flops=197e12, hbm_bytes=15.75 * 2**30, hbm_bandwidth=8.19e11, link_bandwidth=5e10, dimensions=2, ring=16,
    host_chips=8, network=25e9, source="https://docs.cloud.google.com/tpu/docs/v5e",
  ),
  "v5p": Chip(
    peak_flops=459e12, hbm_bytes=95.73 * 2**30, hbm_bandwidth=2.765e12, link_bandwidth=1e11, dimensions=3, ring=4, host_chips=4,
    source="https://docs.cloud.google.com/tpu/docs/v5p-training",
  ),
  "v6e": Chip(
    peak_flops=918e12, hbm_bytes=31.24 * 2**30, hbm_bandwidth=1.638e12, link_bandwidth=1e11, dimensions=2, ring=16,
    host_chips=8, source="https://docs.cloud.google.com/tpu/docs/v6e",
  ),
  "tpu7x": Chip(
    peak_flops=2307e12, hbm_bytes=2 * 94.74 * 2**30, hbm_bandwidth=7.38e12, link_bandwidth=1e11, dimensions=3, ring=4,
    host_chips=4, devices=2, source="https://docs.cloud.google.com/tpu/docs/tpu7x",
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """Slices of one kind of chip, each a box of `shape` chips."""

  kind: str
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chip(self) -> Chip:
    """What its chips can do."""
    return CHIPS[self.kind]

  @property
  def name(self) -> str:
    """A slice as libtpu names it, such as v5p:8x8x8."""
    return f"{self.kind}:{'x'.join(map(str, self.shape))}"

  @property
  def chips(self) -> int:
    """Of all slices."""
    return math.prod(self.shape) * self.slices

  @property
  def devices(self) -> int:
    """That JAX sees, of all slices."""
    return self.chips * self.chip.devices

  def __str__(self) -> str:
    slices = f"{self.slices} slices of " if self.slices > 1 else ""
    return f"{slices}{self.name} ({self.chips:,} chip{'s' if self.chips > 1 else ''})"


def topology(name: str, slices: int = 1) -> Topology:
  """The topology that a name such as v5p:4x4x4 stands for.

  Raises:
    PlanError: no such kind of chip, or a shape that it cannot have.
  """
  kind, _, box = name.partition(":")
  if kind not in CHIPS:
    raise PlanError(f"topology {name!r} is of no known chip; known are {', '.join(examples().values())}.")
  dimensions = CHIPS[kind].dimensions
  if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), box):
    raise PlanError(f"topology {name!r} has no shape of {dimensions} dimensions; expected one such as {examples()[kind]}.")
  if slices < 1:
    raise PlanError(f"{slices} slices of {name} were asked for; expected 1 or more.")
  return Topology(kind=kind, shape=tuple(map(int, box.split("x"))), slices=slices)


def examples() -> dict[str, str]:
  """A topology of every kind of chip."""
  return {kind: f"{kind}:{'x'.join(['4'] * chip.dimensions)}" for kind, chip in CHIPS.items()}


def boxes(kind: str, most_chips: int) -> list[Topology]:
  """One slice of every size up to `most_chips`, smallest first: 1 chip, 4, then doubling, as near to a cube as can be.

  v5p, 16 -> 1x1x1, 2x2x1, 2x2x2, 2x2x4
  """
  dimensions = CHIPS[kind].dimensions
  made = []
  for power in (0, *range(2, most_chips.bit_length())):
    powers = [power // dimensions + (i < power % dimensions) for i in range(dimensions)]
    shape = sorted((2**p for p in powers), reverse=power < dimensions)
    made.append(Topology(kind=kind, shape=tuple(shape)))
  return made
