from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from maxagent.sampling.logits import NO_ROLE, Grammar, next_roles, next_tokens
from maxagent.tokenizer import Tokenizer
from maxagent.traces.schema import RESERVED

SMALL = Grammar(vocab_size=5, end=0, openers=(1, 2), handover=(2,), forbidden=(4,))


def _next(
  logits: np.ndarray, *, temperature: float | None = None, seeds: list[int] | None = None, positions: list[int] | None = None
):
  rows = len(logits)
  return next_tokens(
    jnp.asarray(logits, jnp.float32),
    SMALL,
    temperature=None if temperature is None else jnp.float32(temperature),
    seeds=jnp.asarray(seeds or [0] * rows, jnp.uint32),
    positions=jnp.asarray(positions or [0] * rows, jnp.int32),
  )


def test_a_forbidden_token_is_never_chosen_however_likely_it_is():
  tokens, _ = _next(np.array([[0.0, 0, 0, 1, 50]]))
  assert tokens.tolist() == [3]
  many, _ = _next(np.tile([0.0, 0, 0, 0, 50], (200, 1)), temperature=1.0, seeds=list(range(200)))
  assert 4 not in many and set(many.tolist()) == {0, 1, 2, 3}


def test_ids_that_only_the_model_has_are_never_chosen():
  logits = np.array([[0.0, 0, 0, 1, 0, 50, 50]])
  assert _next(logits)[0].tolist() == [3]
  many, _ = _next(np.tile(logits, (200, 1)), temperature=1.0, seeds=list(range(200)))
  assert set(many.tolist()) == {0, 1, 2, 3}


def test_the_log_probability_is_that_of_the_whole_vocabulary_at_temperature_one():
  logits = np.log([[0.1, 0.2, 0.05, 0.25, 0.4]])
  for temperature in (None, 3.0):
    tokens, log_probs = _next(logits, temperature=temperature, seeds=[7])
    np.testing.assert_allclose(log_probs, logits[0, tokens], rtol=1e-6)


def test_a_rows_draw_depends_on_its_seed_and_position_alone():
  rng = np.random.default_rng(0)
  row = rng.normal(size=(1, 5))
  alone, _ = _next(row, temperature=1.0, seeds=[11], positions=[6])
  among, _ = _next(np.concatenate([rng.normal(size=(3, 5)), row]), temperature=1.0, seeds=[1, 2, 3, 11], positions=[0, 6, 2, 6])
  assert among[3] == alone[0]
  draws = {int(_next(np.zeros((1, 5)), temperature=1.0, seeds=[11], positions=[p])[0][0]) for p in range(20)}
  assert len(draws) > 1


def test_the_turn_closes_with_the_end_of_a_call_and_not_of_a_plan():
  end, plan, call, word = 0, 1, 2, 3
  role, roles, closes = jnp.asarray([NO_ROLE]), [], []
  for token in (plan, word, end, call, word, word, end):
    role, closed = next_roles(role, jnp.asarray([token]), SMALL)
    roles.append(int(role[0]))
    closes.append(bool(closed[0]))
  assert roles == [plan, plan, NO_ROLE, call, call, call, NO_ROLE]
  assert closes == [False] * 6 + [True]


def test_the_model_may_write_exactly_its_own_roles_args_and_end(tokenizer: Tokenizer):
  grammar = Grammar.of(tokenizer)
  allowed = [name for name in RESERVED if tokenizer.id(name) not in grammar.forbidden]
  assert sorted(allowed) == sorted("plan think call args back reflect say answer end".split())
  assert {tokenizer.reserved_name(token) for token in grammar.handover} == {"call", "answer"}
  assert hash(grammar) == hash(Grammar.of(tokenizer))
  assert jax.tree.leaves(grammar) == [grammar]
