"""Blockwise attention in plain JAX: the backend of every platform, and what other backends are tested against.

B batch, T query length, S key length, N query heads, K key/value heads, G = N / K query heads per key head, H head size.
A row is cut into I query tiles of Q queries (R = G * Q rows per key head) and J key tiles of L keys.

The forward pass keeps the result and its log-sum-exp; the backward pass computes each tile's probabilities a second time. No
array larger than a tile has both a query and a key axis. Rows are worked on one after another: on a CPU a tile then stays in
the cache, which halves the time against all rows at once.
Source: arXiv 2205.14135, algorithms 1 and 2; arXiv 2307.08691, section 3.1.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from maxagent.models.attention.tiles import Tiles, tiles_of
from maxagent.models.masks import Mask

# A masked score is HIDDEN and a row's running maximum never falls below FLOOR, so exp(HIDDEN - maximum) is exactly 0 even in a
# row that sees nothing, and no second mask is needed.
HIDDEN, FLOOR = -1e30, -5e29
OUT_NAME, LSE_NAME = "attention_out", "attention_lse"


def xla_attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  *,
  mask: Mask,
  q_start: int | Int[Array, ""],
  block_tokens: int,
) -> Float[Array, "B T N H"]:
  """Exact attention in tiles of `block_tokens` on a side; lengths need not be multiples of it."""
  length, heads, kv_heads = q.shape[1], q.shape[2], k.shape[2]
  q_block, kv_block = min(block_tokens, length), min(block_tokens, k.shape[1])
  padded = Mask(
    _pad(mask.q_segments, q_block), _pad(mask.kv_segments, kv_block), _pad(mask.q_positions, q_block),
    _pad(mask.kv_positions, kv_block), mask.window,
  )  # fmt: skip
  tiles = tiles_of(padded, q_start=q_start, q_block=q_block, kv_block=kv_block)
  scaled = (q * (1 / math.sqrt(q.shape[3]))).astype(q.dtype)
  k_tiles, v_tiles = (_to_tiles(_pad(x, kv_block), kv_block, kv_heads) for x in (k, v))
  out = _attend(_to_tiles(_pad(scaled, q_block), q_block, kv_heads), k_tiles, v_tiles, tiles)
  return _from_tiles(out, q_block, heads)[:, :length]


def _pad(x: Array, block: int) -> Array:
  missing = -x.shape[1] % block
  return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) if missing else x


def _to_tiles(x_BTNH: Array, block: int, kv_heads: int) -> Float[Array, "B I K R H"]:
  batch, length, heads, size = x_BTNH.shape
  x_BIQKGH = x_BTNH.reshape(batch, length // block, block, kv_heads, heads // kv_heads, size)
  return x_BIQKGH.transpose(0, 1, 3, 4, 2, 5).reshape(batch, length // block, kv_heads, -1, size)


def _from_tiles(x_BIKRH: Array, block: int, heads: int) -> Float[Array, "B T N H"]:
  batch, count, kv_heads, _, size = x_BIKRH.shape
  x_BIKGQH = x_BIKRH.reshape(batch, count, kv_heads, heads // kv_heads, block, size)
  return x_BIKGQH.transpose(0, 1, 4, 2, 3, 5).reshape(batch, count * block, heads, size)


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, tiles: Tiles) -> Float[Array, "B I K R H"]:
  return _forward(q, k, v, tiles)[0]


def _forward(q: Array, k: Array, v: Array, tiles: Tiles) -> tuple[Array, tuple[Any, ...]]:
  out, lse = jax.lax.map(lambda row: _forward_row(*row), (q, k, v, tiles))
  out, lse = checkpoint_name(out, OUT_NAME), checkpoint_name(lse, LSE_NAME)
  return out, (q, k, v, tiles, out, lse)


def _backward(kept: tuple[Any, ...], d_out: Array) -> tuple[Array, Array, Array, None]:
  dq, dk, dv = jax.lax.map(lambda row: _backward_row(*row), (*kept, d_out))
  return dq, dk, dv, None


_attend.defvjp(_forward, _backward)


def _scores(q_KRH: Array, k_KLH: Array, tiles: Tiles, i: Array, j: Array) -> Float[Array, "K R L"]:
  s_KRL = jnp.einsum("KRH,KLH->KRL", q_KRH, k_KLH, preferred_element_type=jnp.float32)

  def masked(s_KRL: Array) -> Array:
    visible_QL = tiles.visible(i, j)
    s_KGQL = s_KRL.reshape(s_KRL.shape[0], -1, *visible_QL.shape)
    return jnp.where(visible_QL[None, None], s_KGQL, HIDDEN).reshape(s_KRL.shape)

  # A real branch: most tiles below the diagonal of one document need no mask, and masking costs as much as the exponential.
  return jax.lax.cond(tiles.full[i, j], lambda s: s, masked, s_KRL)


def _forward_row(q_IKRH: Array, k_JKLH: Array, v_JKLH: Array, tiles: Tiles) -> tuple[Array, Array]:
  """Result [I, K, R, H] and log-sum-exp [I, K, R] of one row of the batch."""

  def query_tile(i: Array) -> tuple[Array, Array]:
    q_KRH = q_IKRH[i]

    def key_tile(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
      top_KR, total_KR, sum_KRH = carry
      s_KRL = _scores(q_KRH, k_JKLH[j], tiles, i, j)
      new_KR = jnp.maximum(top_KR, s_KRL.max(-1))
      p_KRL = jnp.exp(s_KRL - new_KR[..., None])
      shrink_KR = jnp.exp(top_KR - new_KR)
      add_KRH = jnp.einsum("KRL,KLH->KRH", p_KRL.astype(v_JKLH.dtype), v_JKLH[j], preferred_element_type=jnp.float32)
      return new_KR, total_KR * shrink_KR + p_KRL.sum(-1), sum_KRH * shrink_KR[..., None] + add_KRH

    rows = q_KRH.shape[:2]
    start = (jnp.full(rows, FLOOR), jnp.zeros(rows), jnp.zeros(q_KRH.shape, jnp.float32))
    top_KR, total_KR, sum_KRH = jax.lax.fori_loop(tiles.first[i], tiles.stop[i], key_tile, start)
    total_KR = jnp.where(total_KR == 0, 1, total_KR)
    return (sum_KRH / total_KR[..., None]).astype(q_KRH.dtype), top_KR + jnp.log(total_KR)

  return jax.lax.map(query_tile, jnp.arange(len(q_IKRH)))


def _backward_row(
  q_IKRH: Array, k_JKLH: Array, v_JKLH: Array, tiles: Tiles, out_IKRH: Array, lse_IKR: Array, d_out_IKRH: Array
) -> tuple[Array, Array, Array]:
  """Gradients of one row's queries, keys and values, each tile visited once."""
  dtype = q_IKRH.dtype
  wide = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

  def query_tile(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
    q_KRH, d_out_KRH = q_IKRH[i], d_out_IKRH[i]
    delta_KR = jnp.sum(d_out_KRH.astype(jnp.float32) * out_IKRH[i].astype(jnp.float32), axis=-1)

    def key_tile(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
      dq_KRH, dk_JKLH, dv_JKLH = carry
      p_KRL = jnp.exp(_scores(q_KRH, k_JKLH[j], tiles, i, j) - lse_IKR[i][..., None])
      dp_KRL = wide("KRH,KLH->KRL", d_out_KRH, v_JKLH[j])
      ds_KRL = (p_KRL * (dp_KRL - delta_KR[..., None])).astype(dtype)
      dv_JKLH = _add_at(dv_JKLH, j, wide("KRL,KRH->KLH", p_KRL.astype(dtype), d_out_KRH))
      dk_JKLH = _add_at(dk_JKLH, j, wide("KRL,KRH->KLH", ds_KRL, q_KRH))
      return dq_KRH + wide("KRL,KLH->KRH", ds_KRL, k_JKLH[j]), dk_JKLH, dv_JKLH

    start = (jnp.zeros(q_KRH.shape, jnp.float32), *carry)
    dq_KRH, *carry = jax.lax.fori_loop(tiles.first[i], tiles.stop[i], key_tile, start)
    return tuple(carry), dq_KRH.astype(dtype)

  zeros = jnp.zeros(k_JKLH.shape, jnp.float32)
  (dk_JKLH, dv_JKLH), dq_IKRH = jax.lax.scan(query_tile, (zeros, zeros), jnp.arange(len(q_IKRH)))
  return dq_IKRH, dk_JKLH.astype(dtype), dv_JKLH.astype(dtype)


def _add_at(total: Array, j: Array, part: Array) -> Array:
  return jax.lax.dynamic_update_index_in_dim(total, total[j] + part, j, 0)
