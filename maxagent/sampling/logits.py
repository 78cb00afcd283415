"""From logits to the next token: what may be said at all, and which of it is said. B rows, V vocabulary."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from maxagent.tokenizer import Tokenizer
from maxagent.traces.schema import MODEL_ROLES, RESERVED

# The end of one of these hands the turn to the harness: a call is executed, an answer ends the episode.
HANDOVER_ROLES = ("call", "answer")
NO_ROLE = -1  # between two segments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grammar:
  """The ids that decoding must know of a tokenizer; hashable, so that jit treats it as static."""

  vocab_size: int
  end: int
  openers: tuple[int, ...]  # begin a segment that the model writes
  handover: tuple[int, ...]  # those of the openers whose end closes the model's turn
  forbidden: tuple[int, ...]  # the harness writes these; they are never sampled

  @classmethod
  def of(cls, tokenizer: Tokenizer) -> Grammar:
    """The grammar of DESIGN's reserved tokens in this tokenizer's ids."""
    writable = MODEL_ROLES | {"args", "end"}
    return cls(
      vocab_size=tokenizer.vocab_size,
      end=tokenizer.end_id,
      openers=tuple(tokenizer.id(name) for name in RESERVED if name in MODEL_ROLES),
      handover=tuple(tokenizer.id(name) for name in HANDOVER_ROLES),
      forbidden=tuple(tokenizer.id(name) for name in RESERVED if name not in writable),
    )


def next_tokens(
  logits: Float[Array, "B V"],
  grammar: Grammar,
  *,
  temperature: Float[Array, ""] | None,
  seeds: UInt32[Array, " B"],
  positions: Int[Array, " B"],
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
  """The next token of every row, and its log-probability in nats under the model.

  The log-probability is that of the whole vocabulary at temperature 1, as in training, whatever was forbidden. With
  `temperature=None` the choice is greedy. A row's draw depends on its own seed and position alone, not on neighbours or slot.
  """
  logits_BV = logits.astype(jnp.float32)
  size = logits_BV.shape[-1]
  allowed_BV = jnp.where(_forbidden(grammar, size)[None], -jnp.inf, logits_BV)
  if temperature is not None:
    allowed_BV = allowed_BV / temperature + _gumbel(seeds, positions, size)
  tokens_B = jnp.argmax(allowed_BV, axis=-1).astype(jnp.int32)
  chosen_B = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)[:, 0]
  return tokens_B, chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def next_roles(roles: Int[Array, " B"], tokens: Int[Array, " B"], grammar: Grammar) -> tuple[Int[Array, " B"], Array]:
  """The role marker of the segment that is open after `tokens`, and whether they close the turn.

  Example, after an observation; `call` .. `end` are ids:
      tokens  [plan, p,    end,  call, get,  args, {},   end]
      roles   [plan, plan, none, call, call, call, call, none]
      closes  [0,    0,    0,    0,    0,    0,    0,    1]
  """
  ends_B = tokens == grammar.end
  closes_B = ends_B & _member(roles, grammar.handover)
  roles_B = jnp.where(_member(tokens, grammar.openers), tokens, jnp.where(ends_B, NO_ROLE, roles))
  return roles_B, closes_B


def _forbidden(grammar: Grammar, size: int) -> np.ndarray:
  mask_V = np.arange(size) >= grammar.vocab_size  # a model may have more ids than its tokenizer
  mask_V[list(grammar.forbidden)] = True
  return mask_V


def _member(ids: Int[Array, " B"], members: tuple[int, ...]) -> Array:
  return jnp.any(ids[:, None] == jnp.asarray(members, jnp.int32)[None], axis=-1)


def _gumbel(seeds: UInt32[Array, " B"], positions: Int[Array, " B"], size: int) -> Float[Array, "B V"]:
  def draw(seed: Array, position: Array) -> Array:
    return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), (size,), jnp.float32)

  return jax.vmap(draw)(seeds, positions)
