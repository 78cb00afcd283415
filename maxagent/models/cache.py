"""The keys and values of what was read, and attention to them.

B rows (slots), T new tokens, S cache length, R repeats of the pattern, N query heads, K key/value heads, G = N / K,
H head size.

A row's place in the cache is its position: position p of a row lies at index p, so a slot is emptied by starting again at
position 0. Local layers keep the whole length too, although they read only their window.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maxagent.config.schema import Model
from maxagent.models.block import Attend
from maxagent.parallel.rules import Layout

# Parts and layers as in the parameters; a layer is {"key", "value"}, each [B, K, S, H], or [R, B, K, S, H] in the pattern.
Cache = dict[str, Any]
# Queries looked up together: [B, N, 64, S] scores are some megabytes at most, whatever the length of a prompt.
CHUNK = 64


def init_cache(config: Model, batch: int, length: int, dtype: Any = None) -> Cache:
  """An empty cache of `batch` rows and `length` positions, by default in the compute dtype."""
  # Heads before positions, as the products read them: the other order copies the whole cache for every token.
  shape = (batch, config.kv_heads, length, config.head_size)
  dtype = jnp.dtype(dtype or config.compute_dtype)

  def layers(count: int, *lead: int) -> Cache:
    return {str(i): {name: jnp.zeros((*lead, *shape), dtype) for name in ("key", "value")} for i in range(count)}

  parts = {
    "prefix": layers(len(config.prefix)),
    "pattern": layers(len(config.pattern), config.repeats) if config.repeats else {},
    "suffix": layers(len(config.suffix)),
  }
  return {name: part for name, part in parts.items() if part}


def cache_axes(config: Model) -> Cache:
  """The logical name of every dimension of `init_cache`'s arrays."""
  axes = ("batch", "kv_heads", None, "head")
  shapes = jax.eval_shape(lambda: init_cache(config, 1, 1))
  return jax.tree.map(lambda leaf: ("layers", *axes) if leaf.ndim == 5 else axes, shapes)


def cached_attention(
  cache: Cache, repeat: Int[Array, ""] | None, *, positions_BT: Array, valid_BT: Array, window: int | None, layout: Layout
) -> Attend:
  """Attention for one layer that writes its keys and values first; what it keeps is the layer's cache after that.

  `repeat` picks the layer where the cache holds all repeats of the pattern. They are written in place: a cache that
  went through a scan as its input and output would be copied twice for every token.
  """
  length = cache["key"].shape[-2]
  # Past the end is the one place that mode="drop" leaves out; a negative index would count from the end.
  index_BT = jnp.where(valid_BT & (positions_BT >= 0), positions_BT, length)
  place = (jnp.arange(len(index_BT))[:, None], slice(None), index_BT)  # takes [B, T, K, H]: indexed dimensions come first
  axes = ("batch", "kv_heads", None, "head")

  def write(old: Array, new_BTKH: Array) -> Array:
    if repeat is None:
      return layout.constrain(old.at[place].set(new_BTKH.astype(old.dtype), mode="drop"), *axes)
    return layout.constrain(old.at[(repeat, *place)].set(new_BTKH.astype(old.dtype), mode="drop"), "layers", *axes)

  def attend(q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
    kept = {"key": write(cache["key"], k), "value": write(cache["value"], v)}
    k_BKSH, v_BKSH = (leaf if repeat is None else leaf[repeat] for leaf in kept.values())
    return _look_up(q, k_BKSH, v_BKSH, positions_BT, window), kept

  return attend


def _look_up(q_BTNH: Array, k_BKSH: Array, v_BKSH: Array, positions_BT: Array, window: int | None) -> Float[Array, "B T N H"]:
  """Attention of each query to the cache up to its position, at most CHUNK queries at a time."""
  batch, length, heads, size = q_BTNH.shape
  if length <= CHUNK:
    return _near(q_BTNH, k_BKSH, v_BKSH, positions_BT, window)
  missing = -length % CHUNK
  q_BTNH = jnp.pad(q_BTNH, ((0, 0), (0, missing), (0, 0), (0, 0)))
  positions_BT = jnp.pad(positions_BT, ((0, 0), (0, missing)), mode="edge")
  chunks = (q_BTNH.reshape(batch, -1, CHUNK, heads, size).swapaxes(0, 1), positions_BT.reshape(batch, -1, CHUNK).swapaxes(0, 1))
  out = jax.lax.map(lambda chunk: _near(chunk[0], k_BKSH, v_BKSH, chunk[1], window), chunks)
  return out.swapaxes(0, 1).reshape(q_BTNH.shape)[:, :length]


def _near(q_BTNH: Array, k_BKSH: Array, v_BKSH: Array, positions_BT: Array, window: int | None) -> Float[Array, "B T N H"]:
  """Attention of a few queries in a row; of a local layer's cache only the part that their windows reach is read."""
  length = k_BKSH.shape[2]
  if window is None or (reach := window + q_BTNH.shape[1] - 1) >= length:
    return _dense(q_BTNH, k_BKSH, v_BKSH, positions_BT[:, :, None] - jnp.arange(length)[None, None], window)
  start_B = jnp.clip(positions_BT[:, 0] - window + 1, 0, length - reach)
  cut = jax.vmap(lambda x_KSH, start: jax.lax.dynamic_slice_in_dim(x_KSH, start, reach, axis=1))
  distance_BTS = positions_BT[:, :, None] - (start_B[:, None, None] + jnp.arange(reach)[None, None])
  return _dense(q_BTNH, cut(k_BKSH, start_B), cut(v_BKSH, start_B), distance_BTS, window)


def _dense(q_BTNH: Array, k_BKSH: Array, v_BKSH: Array, distance_BTS: Array, window: int | None) -> Float[Array, "B T N H"]:
  batch, length, heads, size = q_BTNH.shape
  q_BTKGH = q_BTNH.reshape(batch, length, k_BKSH.shape[1], -1, size) * jnp.asarray(1 / math.sqrt(size), q_BTNH.dtype)
  s_BKGTS = jnp.einsum("BTKGH,BKSH->BKGTS", q_BTKGH, k_BKSH.astype(q_BTNH.dtype), preferred_element_type=jnp.float32)
  seen_BTS = distance_BTS >= 0 if window is None else (distance_BTS >= 0) & (distance_BTS < window)
  # A finite stand-in for minus infinity: a row that sees nothing (an invalid token) averages everything instead of being NaN.
  p_BKGTS = jax.nn.softmax(jnp.where(seen_BTS[:, None, None], s_BKGTS, -1e30), axis=-1)
  # Queries as one axis R = G * T: with two, XLA for CPU transposes the whole cache for this product.
  p_BKRS = p_BKGTS.reshape(*k_BKSH.shape[:2], -1, k_BKSH.shape[2]).astype(q_BTNH.dtype)
  out_BKRH = jnp.einsum("BKRS,BKSH->BKRH", p_BKRS, v_BKSH.astype(q_BTNH.dtype))
  out_BTKGH = out_BKRH.reshape(*k_BKSH.shape[:2], -1, length, size).transpose(0, 3, 1, 2, 4)
  return out_BTKGH.reshape(batch, length, heads, size)
