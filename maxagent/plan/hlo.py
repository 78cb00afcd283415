"""What a compiled program's text says that its own cost analysis does not: collectives and products, loops multiplied.

XLA's cost analysis counts the body of a loop once, so a scanned model of 32 layers looks like one of 4.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from maxagent.errors import PlanError

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}  # else 4
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')  # how libtpu writes a collective between slices
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """One collective instruction of the program; of several slices each runs the same program."""

  kind: str  # as HLO names it
  size_bytes: float  # of the whole arrays: gathered, or before they are scattered; between slices what one device gives
  groups: np.ndarray | None  # [groups, members] places in the mesh; of a permutation [pairs, 2]; None: between slices
  times: float  # per step, loops multiplied


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """What one device does in a step."""

  collectives: tuple[Collective, ...]
  product_flops: float  # of matrix products outside of kernels, recomputation and optimizer included
  unread_loops: int  # whose number of turns the text does not tell; counted once


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  opcode: str
  rest: str  # operands and attributes

  @property
  def operands(self) -> list[str]:
    return re.findall(r"%([\w.\-]+)", self.rest[: self.rest.find(")")])


_Computations = dict[str, list[_Instruction]]


def read_program(text: str) -> Program:
  """Reads the text of an optimized, scheduled module."""
  computations, entry = _computations(text)
  devices = int(found[1]) if (found := re.search(r"num_partitions=(\d+)", text)) else 1
  times, unread = _times(computations, entry)
  made: list[Collective] = []
  flops = 0.0
  for name, instructions in computations.items():
    if not times[name]:
      continue
    shapes = {i.name: i.shape for i in instructions}
    for i in instructions:
      if i.opcode in ("dot", "convolution"):
        flops += times[name] * _product_flops(i, shapes)
      elif i.opcode == "send" and (between := _MEGASCALE.search(i.rest)):
        kind = between[1].lower().replace("_", "-")
        sent = _shape_bytes(i.shape[: i.shape.find("]") + 1])  # what follows the array is for the runtime
        made.append(Collective(kind=kind, size_bytes=sent, groups=None, times=times[name]))
      elif i.opcode.removesuffix("-start") in _KINDS:
        made.append(_collective(i, name, times[name], devices))
  return Program(collectives=tuple(made), product_flops=flops, unread_loops=unread)


def _computations(text: str) -> tuple[_Computations, str]:
  computations: _Computations = {}
  entry = ""
  for line in text.splitlines():
    if header := _HEADER.match(line):
      here = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif computations and (found := _INSTRUCTION.match(line)):
      here.append(_Instruction(found[1], *_split(found[2])))
  return computations, entry


def _split(text: str) -> tuple[str, str, str]:
  """`(f32[2]{0}, s32[]) while(%x), body=%b` -> its shape, opcode and the rest."""
  depth, end = 0, len(text)
  for place, character in enumerate(text):
    depth += (character == "(") - (character == ")")
    if character == " " and not depth:
      end = place
      break
  opcode, _, rest = text[end + 1 :].partition("(")
  return text[:end], opcode, rest


def _times(computations: _Computations, entry: str) -> tuple[Mapping[str, float], int]:
  """How often a step runs each computation, and how many loops could not be read. All branches count as taken."""
  times: dict[str, float] = collections.defaultdict(float)
  times[entry] = 1
  unread = 0
  for name in reversed(list(computations)):  # a computation stands before what calls it
    for i in computations[name]:
      turns = 1.0
      if i.opcode == "while":
        known = _turns(i, computations)
        unread += known is None
        turns = known or 1.0
      branches = [b.strip(" %") for found in _BRANCHES.findall(i.rest) for b in found.split(",")]
      for called in itertools.chain(_CALLED.findall(i.rest), branches):
        times[called] += times[name] * turns
  return times, unread


def _turns(loop: _Instruction, computations: _Computations) -> float | None:
  """How often a loop turns: as the text says, or the one number that its condition compares with."""
  if known := re.search(r"known_trip_count[^\d}]*(\d+)", loop.rest):
    return float(known[1])
  condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
  inside = computations.get(condition[1], []) if condition else []
  numbers = [i.rest for i in inside if i.opcode == "constant" and i.shape.startswith("s32[]")]
  less = any("direction=LT" in i.rest for i in inside)
  return float(numbers[0][: numbers[0].find(")")]) if less and len(numbers) == 1 else None


def _sizes(shape: str) -> Iterator[tuple[str, list[int]]]:
  for dtype, sizes in _ARRAY.findall(shape):
    yield dtype, [int(size) for size in sizes.split(",") if size]


def _shape_bytes(shape: str) -> float:
  return float(sum(_BYTES.get(dtype, 4) * math.prod(sizes) for dtype, sizes in _sizes(shape)))


def _product_flops(i: _Instruction, shapes: Mapping[str, str]) -> float:
  """Two for every multiplication that meets two real numbers, not padding; of whole numbers none."""
  (dtype, out), *_ = _sizes(i.shape)
  if dtype[0] not in "bf":
    return 0.0
  left, right = (next(_sizes(shapes[name]))[1] for name in i.operands[:2])
  if i.opcode == "dot":
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
    summed = [left[int(d)] for d in found[1].split(",") if d] if found else []
    return 2.0 * math.prod(out) * math.prod(summed)
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
  assert labels is not None
  flops = 2.0 * left[labels[1].index("b")] * right[labels[2].index("i")] * right[labels[2].index("o")]
  for d in range(len(left) - 2):
    sizes = left[labels[1].index(str(d))], right[labels[2].index(str(d))], out[labels[3].index(str(d))]
    flops *= _pairs(sizes, _window(i.rest, d))
  return flops


def _window(rest: str, d: int) -> dict[str, str]:
  found = re.search(r"window=\{([^}]*)\}", rest)
  parts = dict(part.split("=") for part in found[1].split()) if found else {}
  return {name: value.split("x")[d] for name, value in parts.items()}


def _pairs(sizes: tuple[int, int, int], window: Mapping[str, str]) -> int:
  """Pairs of an output place and a window place that meet an input, along one dimension."""
  inputs, width, outputs = sizes
  stride, spread, hole = (int(window.get(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
  before = int(window.get("pad", "0_0").split("_")[0])
  at = np.arange(outputs)[:, None] * stride + np.arange(width)[None, :] * hole - before
  return int(((at >= 0) & (at <= (inputs - 1) * spread) & (at % spread == 0)).sum())


def _collective(i: _Instruction, computation: str, times: float, devices: int) -> Collective:
  kind = i.opcode.removesuffix("-start")
  size = _shape_bytes(i.shape)
  if kind == "collective-permute":
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", i.rest)
    groups = np.array([[int(n) for n in p.split(",")] for p in re.findall(r"\{?(\d+,\d+)", pairs[1])] if pairs else [[0, 0]])
    return Collective(kind=kind, size_bytes=size / (2 if i.opcode != kind else 1), groups=groups, times=times)
  groups = read_groups(i.rest, devices)
  members = groups.shape[1]
  if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
    kind = "reduce-scatter"  # of TPUs: written as the sum of all and the slice that is kept
  elif kind == "reduce-scatter":
    size *= members
  elif kind == "all-gather" and i.opcode != kind:
    size *= members / (members + 1)  # the result stands beside the operand
  return Collective(kind=kind, size_bytes=size, groups=groups, times=times)


def read_groups(attributes: str, devices: int) -> np.ndarray:
  """[groups, members] of `replica_groups`, in any of its forms; PlanError for one that is not known.

  {{0,1},{2,3}}                            listed
  [2,2]<=[4], [2,2]<=[2,2]T(1,0)           a reshaped, transposed count
  mesh['a'=2,'b'=4] {'b'}                  along axes of a mesh; 'b':(2)2 is a part of an axis
  {}                                       everyone
  """
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", attributes):
    return _mesh_groups(found[1], found[2])
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
    shape, counted = ([int(n) for n in found[g].split(",")] for g in (1, 2))
    ids = np.arange(math.prod(counted)).reshape(counted)
    return (ids.transpose([int(n) for n in found[3].split(",")]) if found[3] else ids).reshape(shape)
  if found := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
    return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found[1])])
  if "replica_groups={}" in attributes or "replica_groups" not in attributes:
    return np.arange(devices)[None, :]
  form = attributes[attributes.index("replica_groups") :][:80]
  raise PlanError(
    f"the compiler wrote {form!r}, and no form of replica groups is known that looks so; take the libtpu of this jax."
  )


def _mesh_groups(mesh: str, along: str) -> np.ndarray:
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
  parts = {name: (int(before), int(size)) for name, before, size in re.findall(r"'([^']+)':\((\d+)\)(\d+)", along)}
  shape: list[int] = []
  place: dict[str, int] = {}
  for name, size in sizes.items():
    before, part = parts.get(name, (1, size))
    place[name] = len(shape) + 1
    shape += [before, part, size // before // part]
  ids = np.arange(math.prod(sizes.values())).reshape(shape)
  members = [place[name] for name in re.findall(r"'([^']+)'", along)]
  last = list(range(-len(members), 0))
  count = math.prod(ids.shape[m] for m in members)
  return np.moveaxis(ids, members, last).reshape(-1, count)
