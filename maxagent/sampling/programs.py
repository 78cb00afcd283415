"""The compiled programs of the engine: write forced tokens, decode a block of steps.

B rows of the batch, R rows of one prefill, T tokens of one prefill, Q queued tokens, D model, V vocabulary.

Rows lie on every mesh axis except those that hold the weights, and each group of devices runs its own loop (`shard_map`): where
the weights are whole on each device, decoding needs no communication at all, and a group stops as soon as its own rows have.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from maxagent.config import Model
from maxagent.models import cache as caches
from maxagent.models import transformer
from maxagent.parallel.rules import Layout, mesh_axes
from maxagent.sampling.logits import Grammar, next_roles, next_tokens

# Up to this size the weights are copied to every device; above it they stay cut along the tensor axis.
REPLICATED_BYTES = 1 << 30
WEIGHT_AXIS = "tensor"
NO_TOKEN = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """Everything that a compiled program depends on; equal programs share one compilation, whatever their weights."""

  model: Model
  grammar: Grammar
  mesh: Mesh | None
  row_axes: tuple[str, ...]  # mesh axes that the rows are cut along
  length: int  # tokens that a row's cache holds
  keys: int  # the first positions of the cache that this program reads and writes: all that its rows reach
  block_steps: int  # decode steps between two looks of the host
  greedy: bool

  @property
  def row_parts(self) -> int:
    """Groups of devices that hold rows of their own."""
    return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in self.row_axes)

  def rows(self) -> PartitionSpec:
    """Where an array [B, ...] lies."""
    return PartitionSpec(self.row_axes)

  def sharding(self, spec: PartitionSpec) -> NamedSharding | None:
    """`spec` on this program's mesh."""
    return None if self.mesh is None else NamedSharding(self.mesh, spec)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
  """What the host asks of one block of decode steps; arrays of [B] unless noted."""

  queue: Any  # int32 [B, Q]: tokens to write first
  queued: Any  # int32: how many of them, at least 1 in an active row
  starts: Any  # int32: the position of the first
  roles: Any  # int32: role marker of the open segment
  budgets: Any  # int32: tokens that may still be sampled; 0 in an idle row
  seeds: Any  # uint32


def row_axes(mesh: Mesh | None, weight_bytes: int) -> tuple[str, ...]:
  """The mesh axes for rows: all, or all but the one that holds weights too large to copy."""
  if mesh is None:
    return ()
  return tuple(axis for axis in mesh.axis_names if axis != WEIGHT_AXIS or weight_bytes <= REPLICATED_BYTES)


def place_weights(params: Any, model: Model, *, mesh: Mesh | None, axes: tuple[str, ...]) -> Any:
  """A copy of the weights in decode layout: whole along the row axes, matrices in the dtype that they are used in."""

  def cast(leaf: Array, logical: tuple[str | None, ...]) -> Array:
    # The layers cast a matrix wherever they use it; a norm's scale stays float32 there.
    return leaf if "norm" in logical else leaf.astype(model.compute_dtype)

  def sharding(logical: tuple[str | None, ...]) -> NamedSharding | None:
    kept = [[axis for axis in mesh_axes(name) if axis not in axes] for name in logical]
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(*(axis[0] if axis else None for axis in kept)))

  logical_axes = transformer.logical_axes(model)
  shardings = jax.tree.map(sharding, logical_axes, is_leaf=lambda node: isinstance(node, tuple))
  return jax.jit(lambda tree: jax.tree.map(cast, tree, logical_axes), out_shardings=shardings)(params)


def empty_cache(program: Program, slots: int) -> Any:
  """A cache for `slots` rows, born on the mesh."""

  def build() -> Any:
    return caches.init_cache(program.model, slots, program.length)

  if program.mesh is None:
    return jax.jit(build)()
  shardings = jax.tree.map(program.sharding, _cache_specs(program))
  return jax.jit(build, out_shardings=shardings)()


@functools.partial(jax.jit, static_argnames="program", donate_argnames="cache")
def prefill(
  params: Any, cache: Any, rows_R: Array, tokens_RT: Array, starts_R: Array, counts_R: Array, *, program: Program
) -> Any:
  """Writes `counts_R` tokens of `tokens_RT` from position `starts_R` on; `rows_R` are numbered inside each group of devices.

  A row listed twice would race with itself; a row with count 0 is written back as it was.
  """
  places = _rows(program)

  def write(params: Any, cache: Any, rows_R: Array, tokens_RT: Array, starts_R: Array, counts_R: Array) -> Any:
    part = jax.tree.map(lambda leaf, place: jnp.take(place.near(leaf), rows_R, axis=place.dimension), cache, places)
    steps_T = jnp.arange(tokens_RT.shape[1], dtype=jnp.int32)
    positions_RT = jnp.minimum(starts_R[:, None] + steps_T[None], program.keys - 1)
    valid_RT = steps_T[None] < counts_R[:, None]
    _, part = transformer.extend(params, part, tokens_RT, positions_RT, valid_RT, config=program.model, layout=Layout())
    return jax.tree.map(lambda leaf, new, place: leaf.at[place.index(rows_R)].set(new), cache, part, places)

  rows = program.rows()
  specs = _cache_specs(program)
  return _per_group(write, program, (PartitionSpec(), specs, rows, rows, rows, rows), specs)(
    params, cache, rows_R, tokens_RT, starts_R, counts_R
  )


@functools.partial(jax.jit, static_argnames="program", donate_argnames="cache")
def decode(params: Any, cache: Any, block: Block, temperature: Array, *, program: Program) -> tuple[Any, tuple[Array, ...]]:
  """Up to `block_steps` decode steps; a row first writes its queue, then samples until its turn closes or its budget is spent.

  Returns the cache and, replicated: sampled tokens [B, block_steps] (NO_TOKEN where none was sampled), their log-probabilities,
  the roles of the segments left open, and whether the turn was closed.
  """
  rows, specs = program.rows(), _cache_specs(program)
  run = functools.partial(_decode_rows, program=program)
  cache, outputs = _per_group(run, program, (PartitionSpec(), specs, rows, PartitionSpec()), (specs, rows))(
    params, cache, block, temperature
  )
  if program.mesh is not None:  # every process reads every row
    outputs = jax.lax.with_sharding_constraint(outputs, program.sharding(PartitionSpec()))
  return cache, outputs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Carry:
  step: Any
  cache: Any
  token: Any  # the last one sampled
  role: Any
  closed: Any
  left: Any  # tokens that may still be sampled; 0 stops the row
  tokens: Any
  log_probs: Any


def _decode_rows(
  params: Any, cache: Any, block: Block, temperature: Array, *, program: Program
) -> tuple[Any, tuple[Array, ...]]:
  B, steps = block.starts.shape[0], program.block_steps
  places = _rows(program)
  head_DV = transformer.head(params, program.model)

  def running(carry: _Carry) -> Array:
    return (carry.step < steps) & jnp.any(carry.left > 0)

  def advance(carry: _Carry) -> _Carry:
    queued_B = jax.lax.dynamic_index_in_dim(block.queue, jnp.minimum(carry.step, block.queue.shape[1] - 1), 1, keepdims=False)
    token_B = jnp.where(carry.step < block.queued, queued_B, carry.token)
    positions_B = jnp.minimum(block.starts + carry.step, program.keys - 1)
    active_B = carry.left > 0
    hidden_BTD, cache = transformer.extend(
      params, carry.cache, token_B[:, None], positions_B[:, None], active_B[:, None], config=program.model, layout=Layout()
    )
    logits_BV = jnp.einsum("BD,DV->BV", hidden_BTD[:, 0], head_DV.astype(hidden_BTD.dtype), preferred_element_type=jnp.float32)
    sampled_B, log_probs_B = next_tokens(
      logits_BV, program.grammar, temperature=None if program.greedy else temperature, seeds=block.seeds, positions=positions_B
    )
    samples_B = active_B & (carry.step + 1 >= block.queued)
    role_B, closes_B = next_roles(carry.role, sampled_B, program.grammar)
    return _Carry(
      step=carry.step + 1,
      cache=cache,
      token=jnp.where(samples_B, sampled_B, carry.token),
      role=jnp.where(samples_B, role_B, carry.role),
      closed=carry.closed | (samples_B & closes_B),
      left=jnp.where(samples_B, jnp.where(closes_B, 0, carry.left - 1), carry.left),
      tokens=carry.tokens.at[:, carry.step].set(jnp.where(samples_B, sampled_B, NO_TOKEN)),
      log_probs=carry.log_probs.at[:, carry.step].set(jnp.where(samples_B, log_probs_B, 0.0)),
    )

  done = jax.lax.while_loop(
    running,
    advance,
    _Carry(
      step=jnp.zeros((), jnp.int32),
      cache=jax.tree.map(lambda leaf, place: place.near(leaf), cache, places),
      token=jnp.zeros(B, jnp.int32),
      role=block.roles,
      closed=jnp.zeros(B, bool),
      left=block.budgets,
      tokens=jnp.full((B, steps), NO_TOKEN, jnp.int32),
      log_probs=jnp.zeros((B, steps), jnp.float32),
    ),
  )
  cache = jax.tree.map(lambda leaf, new, place: leaf.at[place.index()].set(new), cache, done.cache, places)
  return cache, (done.tokens, done.log_probs, done.role, done.closed)


def _per_group(function: Callable[..., Any], program: Program, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
  """`function` on each group's own rows; without a mesh, `function`."""
  if program.mesh is None:
    return function
  # check_vma off: fresh carries of the loop are unvarying on entry and vary after one step.
  return jax.shard_map(
    function, mesh=program.mesh, in_specs=in_specs, out_specs=out_specs, axis_names=set(program.row_axes), check_vma=False
  )


@dataclasses.dataclass(frozen=True)
class _Rows:
  """Where a cache leaf counts rows; positions are two dimensions after. Of those, a program has to do with `keys`."""

  dimension: int
  keys: int

  def near(self, leaf: Array) -> Array:
    """The part of the leaf that the program reads."""
    return jax.lax.slice_in_dim(leaf, 0, self.keys, axis=self.dimension + 2)

  def index(self, rows: Any = slice(None)) -> tuple[Any, ...]:
    """The index of that part; of some rows only, if given."""
    return (*[slice(None)] * self.dimension, rows, slice(None), slice(self.keys))


def _rows(program: Program) -> Any:
  axes = caches.cache_axes(program.model)
  return jax.tree.map(
    lambda names: _Rows(names.index("batch"), program.keys), axes, is_leaf=lambda node: isinstance(node, tuple)
  )


def _cache_specs(program: Program) -> Any:
  return jax.tree.map(lambda rows: PartitionSpec(*[None] * rows.dimension, program.row_axes), _rows(program))
