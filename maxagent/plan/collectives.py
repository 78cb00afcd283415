"""Which mesh axes a program's collectives run along, how many bytes they move, and over which network.

Bytes are what one device sends in a ring: of S bytes over n members a gather or scatter sends S (n - 1) / n, a sum of all twice
that. Between slices every device does the same with its like in the others, after its slice has worked alone.
Source: https://jax-ml.github.io/scaling-book/sharding.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from maxagent.plan.chips import Topology
from maxagent.plan.hlo import Collective, Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
  """All collectives of one kind along the same axes over the same network, in one step of one device."""

  kind: str
  axes: str  # such as fsdp or data+fsdp
  network: str  # ICI or DCN
  times: float
  sent_bytes: float
  seconds: float  # at the network's full bandwidth, one after another


@dataclasses.dataclass(frozen=True)
class Places:
  """Where the devices of a mesh lie."""

  topology: Topology
  mesh: Mapping[str, int]
  coords: Sequence[Sequence[int]]  # of every device, in the order of the mesh


def traffic(program: Program, places: Places) -> tuple[Traffic, ...]:
  """What a step sends, the slowest first."""
  sums: dict[tuple[str, str, str], np.ndarray] = collections.defaultdict(lambda: np.zeros(3))
  for one in program.collectives:
    if one.groups is None:
      sent, rate, key = _between(one, places.topology.slices), _network(places.topology), ("data", "DCN")
    else:
      sent, rate, key = _inside(one, one.groups), _links(one.groups[0], places), (_axes(one.groups, places.mesh), "ICI")
    sums[(one.kind, *key)] += np.array([1, sent, sent / rate]) * one.times
  made = [
    Traffic(kind=kind, axes=axes, network=network, times=times, sent_bytes=sent, seconds=seconds)
    for (kind, axes, network), (times, sent, seconds) in ((key, map(float, value)) for key, value in sums.items())
    if sent
  ]
  return tuple(sorted(made, key=lambda one: -one.seconds))


def _inside(one: Collective, groups: np.ndarray) -> float:
  if one.kind == "collective-permute":
    return one.size_bytes if (groups[:, 0] != groups[:, 1]).any() else 0.0
  members = groups.shape[1]
  return (2 if one.kind == "all-reduce" else 1) * one.size_bytes * (members - 1) / members


def _between(one: Collective, slices: int) -> float:
  if one.kind == "all-gather":
    return one.size_bytes * (slices - 1)
  if one.kind in ("all-reduce", "reduce-scatter", "all-to-all"):
    return (2 if one.kind == "all-reduce" else 1) * one.size_bytes * (slices - 1) / slices
  return one.size_bytes


def _axes(groups: np.ndarray, mesh: Mapping[str, int]) -> str:
  """The axes along which members of a group differ, over all groups."""
  coordinates = np.unravel_index(groups, tuple(mesh.values()))
  differs = [name for name, axis in zip(mesh, coordinates, strict=True) if (axis != axis[:, :1]).any()]
  return "+".join(differs) or "itself"


def _network(topology: Topology) -> float:
  """Bytes per second that one device has of its host's network."""
  return topology.chip.network / topology.chip.host_chips / topology.chip.devices


def _links(group: np.ndarray, places: Places) -> float:
  """Bytes per second at which one device sends: links of every dimension that the group lies along, both ways in a ring."""
  chip = places.topology.chip
  coords = np.asarray(places.coords)[group][:, : chip.dimensions]
  along = [(len(set(coords[:, d].tolist())), size) for d, size in enumerate(places.topology.shape)]
  # A group that has all of a dimension that closes sends both ways round; one that has a part of it is a line.
  ways = sum(2 if part == size and size % chip.ring == 0 else 1 for part, size in along if part > 1) or 1
  return ways * chip.link_bandwidth / chip.devices
