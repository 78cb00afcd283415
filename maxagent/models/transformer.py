"""The decoder: embedding, prefix + repeats x pattern + suffix layers, final norm. B batch, T length, D model, V vocabulary.

Parameters are plain nested dicts of float32 arrays:

    embedding   {table [V, D], head [D, V] when untied}
    prefix      {"0": layer, "1": layer, ...}
    pattern     {"0": layer, ...} every leaf stacked over the repeats on axis 0, for lax.scan
    suffix      {"0": layer, ...}
    final_norm  {scale [D]}
    mtp         {"0": depth, ...} of multi-token prediction; only training uses it

A part without layers is left out. The modules define the layers; they are split once per configuration and put together again
around slices of these dicts, so that nothing of Flax lives in a checkpoint or in the hot loop.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maxagent.config.schema import Model
from maxagent.models.attention import SAVED_NAMES, attention
from maxagent.models.block import Attend, Block
from maxagent.models.cache import Cache, cached_attention
from maxagent.models.definition import Definition, define, plain
from maxagent.models.embed import Embedding
from maxagent.models.masks import Mask
from maxagent.models.multi_token import Depth, ahead
from maxagent.models.norm import RMSNorm
from maxagent.models.rope import rotation
from maxagent.parallel.rules import Layout

Params = dict[str, Any]


def init(config: Model, key: Array) -> Params:
  """First values of all parameters. The same on every mesh: a layer's key depends on its place in the network alone."""
  ends_key, layers_key = jax.random.split(key)

  def layer(kind: str, place: int | Array) -> Params:
    return plain(Block(config, kind, key=jax.random.fold_in(layers_key, place)))

  def stacked(offset: int) -> Params:
    places = len(config.prefix) + offset + len(config.pattern) * jnp.arange(config.repeats)
    return jax.vmap(functools.partial(layer, config.pattern[offset]))(places)

  def depth(i: int) -> Params:
    return plain(Depth(config, config.layers[-1], key=jax.random.fold_in(layers_key, len(config.layers) + i)))

  suffix_start = len(config.layers) - len(config.suffix)
  params = {
    "embedding": plain(Embedding(config, key=ends_key)),
    "prefix": {str(i): layer(kind, i) for i, kind in enumerate(config.prefix)},
    "pattern": {str(i): stacked(i) for i in range(len(config.pattern)) if config.repeats},
    "suffix": {str(i): layer(kind, suffix_start + i) for i, kind in enumerate(config.suffix)},
    "final_norm": plain(RMSNorm(config.hidden_size, config.norm_epsilon)),
    "mtp": {str(i): depth(i) for i in range(config.mtp_depth)},
  }
  return {name: part for name, part in params.items() if part}


def abstract(config: Model) -> Params:
  """Shapes and dtypes of `init`'s result, without computing it."""
  return jax.eval_shape(functools.partial(init, config), jax.eval_shape(lambda: jax.random.key(0)))


def logical_axes(config: Model) -> Params:
  """The logical name of every dimension of every parameter, in `init`'s structure."""
  ends = {"embedding": embedding(config).axes, "final_norm": final_norm(config).axes}

  def layers(kinds: tuple[str, ...]) -> Params:
    return {str(i): block(config, kind).axes for i, kind in enumerate(kinds)}

  pattern = jax.tree.map(lambda axes: ("layers", *axes), layers(config.pattern), is_leaf=lambda x: isinstance(x, tuple))
  parts = {"prefix": layers(config.prefix), "pattern": pattern if config.repeats else {}, "suffix": layers(config.suffix)}
  parts["mtp"] = {str(i): mtp_depth(config).axes for i in range(config.mtp_depth)}
  return ends | {name: part for name, part in parts.items() if part}


def hidden_states(
  params: Params,
  tokens_BT: Int[Array, "B T"],
  *,
  segments_BT: Int[Array, "B T"],
  positions_BT: Int[Array, "B T"],
  config: Model,
  layout: Layout,
) -> Float[Array, "B T D"]:
  """The stream after the last layer and the final norm, in the compute dtype."""
  x_BTD = embedding(config).merge(params["embedding"])(tokens_BT, jnp.dtype(config.compute_dtype), layout)
  angles = rotation(positions_BT, config.head_size, config.rope_theta)

  def apply(x_BTD: Array, layers: Params, kinds: tuple[str, ...]) -> Array:
    for i, kind in enumerate(kinds):
      mask = Mask.within(segments_BT, positions_BT, window_of(config, kind))
      attend = _self_attention(mask, config, layout)
      x_BTD, _ = block(config, kind).merge(layers[str(i)])(x_BTD, angles=angles, attend=attend, layout=layout)
    return x_BTD

  x_BTD = through_layers(x_BTD, params, apply, config)
  return final_norm(config).merge(params["final_norm"])(x_BTD)


def further_states(
  params: Params,
  hidden_BTD: Float[Array, "B T D"],
  tokens_BT: Int[Array, "B T"],
  *,
  segments_BT: Int[Array, "B T"],
  positions_BT: Int[Array, "B T"],
  config: Model,
  layout: Layout,
) -> list[Float[Array, "B T D"]]:
  """What the head predicts further tokens from: where `hidden_states` says what follows place i, item k - 1 what follows i + k.

  Place i of depth k knows the tokens up to i + k. Where that lies in another document or past the row's end its state means
  nothing, and no place that means something has seen it.
  """
  kind = config.layers[-1]
  embed = embedding(config).merge(params["embedding"])
  angles = rotation(positions_BT, config.head_size, config.rope_theta)
  attend = _self_attention(Mask.within(segments_BT, positions_BT, window_of(config, kind)), config, layout)

  def further(state_BTD: Array, token_BTD: Array, part: Params) -> Array:
    return mtp_depth(config).merge(part)(state_BTD, token_BTD, angles=angles, attend=attend, layout=layout)

  states = [hidden_BTD]
  for i in range(config.mtp_depth):
    token_BTD = embed(ahead(tokens_BT, i + 1), hidden_BTD.dtype, layout)
    states.append(_recomputed(further, config)(states[-1], token_BTD, params["mtp"][str(i)]))
  return states[1:]


def without_mtp(params: Params, config: Model) -> tuple[Params, Model]:
  """The model that predicts the next token and nothing else: what is decoded from."""
  return {name: part for name, part in params.items() if name != "mtp"}, dataclasses.replace(config, mtp_depth=0)


def extend(
  params: Params,
  cache: Cache,
  tokens_BT: Int[Array, "B T"],
  positions_BT: Int[Array, "B T"],
  valid_BT: Bool[Array, "B T"],
  *,
  config: Model,
  layout: Layout,
) -> tuple[Float[Array, "B T D"], Cache]:
  """Hidden states of new tokens (final norm applied), and the cache with their keys and values in it.

  Each row goes on at its own positions; a token sees the cache up to its own position. A token that is not valid writes nothing
  and its hidden state means nothing; a position past the cache's end writes nothing either, so the caller stops a
  row before it.
  """
  x_BTD = embedding(config).merge(params["embedding"])(tokens_BT, jnp.dtype(config.compute_dtype), layout)
  angles = rotation(positions_BT, config.head_size, config.rope_theta)
  read = functools.partial(cached_attention, positions_BT=positions_BT, valid_BT=valid_BT, layout=layout)

  def step(kinds: tuple[str, ...], carry: tuple[Array, Cache], layers: Params, repeat: Array | None) -> tuple[Array, Cache]:
    x_BTD, kept = carry
    for i, kind in ((str(i), kind) for i, kind in enumerate(kinds)):
      attend = read(kept[i], repeat, window=window_of(config, kind))
      x_BTD, layer = block(config, kind).merge(layers[i])(x_BTD, angles=angles, attend=attend, layout=layout)
      kept = kept | {i: layer}
    return x_BTD, kept

  new = dict(cache)
  if config.prefix:
    x_BTD, new["prefix"] = step(config.prefix, (x_BTD, cache["prefix"]), params["prefix"], None)
  if config.repeats:
    repeats = (params["pattern"], jnp.arange(config.repeats))
    (x_BTD, new["pattern"]), _ = jax.lax.scan(
      lambda carry, at: (step(config.pattern, carry, *at), None), (x_BTD, cache["pattern"]), repeats
    )
  if config.suffix:
    x_BTD, new["suffix"] = step(config.suffix, (x_BTD, cache["suffix"]), params["suffix"], None)
  return final_norm(config).merge(params["final_norm"])(x_BTD), new


def head(params: Params, config: Model) -> Float[Array, "D V"]:
  """The matrix from hidden states to logits, float32: the embedding transposed when tied."""
  return embedding(config).merge(params["embedding"]).output_matrix()


def window_of(config: Model, kind: str) -> int | None:
  """How many positions, itself included, a token of such a layer sees (None: all before it)."""
  return config.window_tokens if kind == "local" else None


def through_layers(x_BTD: Array, params: Params, apply: Callable[..., Array], config: Model) -> Array:
  """`apply(x, layers, kinds)` over the prefix, each repeat of the pattern (scanned) and the suffix, recomputed as asked."""

  def step(kinds: tuple[str, ...]) -> Callable[[Array, Params], Array]:
    return _recomputed(functools.partial(apply, kinds=kinds), config)

  for i, kind in enumerate(config.prefix):
    x_BTD = step((kind,))(x_BTD, {"0": params["prefix"][str(i)]})
  if config.repeats:
    repeat = step(config.pattern)
    x_BTD, _ = jax.lax.scan(lambda x, layers: (repeat(x, layers), None), x_BTD, params["pattern"])
  for i, kind in enumerate(config.suffix):
    x_BTD = step((kind,))(x_BTD, {"0": params["suffix"][str(i)]})
  return x_BTD


def _recomputed(run: Callable[..., Array], config: Model) -> Callable[..., Array]:
  """`run`, which keeps only attention's results for the backward pass if the config asks for it."""
  if config.remat == "none":
    return run
  return jax.checkpoint(run, policy=jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES))


def _self_attention(mask: Mask, config: Model, layout: Layout) -> Attend:
  def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
    block = config.attention_block_tokens
    return attention(q, k, v, mask=mask, backend=config.attention, block_tokens=block, layout=layout), None

  return attend


@functools.cache
def block(config: Model, kind: str) -> Definition:
  """The definition of a layer of that kind."""
  return define(lambda key: Block(config, kind, key=key))


@functools.cache
def mtp_depth(config: Model) -> Definition:
  """The definition of one depth of multi-token prediction; its layer is of the last layer's kind."""
  return define(lambda key: Depth(config, config.layers[-1], key=key))


@functools.cache
def embedding(config: Model) -> Definition:
  """The definition of the input table and the head."""
  return define(lambda key: Embedding(config, key=key))


@functools.cache
def final_norm(config: Model) -> Definition:
  """The definition of the norm before the head."""
  return define(lambda key: RMSNorm(config.hidden_size, config.norm_epsilon))
