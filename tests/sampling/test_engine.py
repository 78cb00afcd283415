from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxagent.config import Mesh, Model
from maxagent.models import transformer
from maxagent.parallel import Layout, make_mesh
from maxagent.sampling import programs
from maxagent.sampling.engine import Decoding, Engine, Turn
from maxagent.sampling.logits import Grammar
from maxagent.tokenizer import Tokenizer

pytestmark = pytest.mark.smoke

LENGTH = 96
ONE_DEVICE = Layout()
DECODING = Decoding(turn_tokens=24, block_steps=16)


@pytest.fixture(scope="module")
def grammar(tokenizer: Tokenizer) -> Grammar:
  return Grammar.of(tokenizer)


@pytest.fixture(scope="module")
def params(model: Model) -> Any:
  return jax.jit(transformer.init, static_argnums=0)(model, jax.random.key(3))


@functools.partial(jax.jit, static_argnames="model")
def _logits(params: Any, tokens_BT: jax.Array, model: Model) -> jax.Array:
  positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
  hidden_BTD = transformer.hidden_states(
    params, tokens_BT, segments_BT=jnp.ones_like(tokens_BT), positions_BT=positions_BT, config=model, layout=Layout()
  )
  return hidden_BTD @ transformer.head(params, model)


def _forward(params: Any, model: Model, tokens: list[int]) -> np.ndarray:
  """Logits after every token, by the forward pass of training; padded behind, which a causal model does not see."""
  padded = np.zeros((1, LENGTH), np.int32)
  padded[0, : len(tokens)] = tokens
  return np.asarray(_logits(params, jnp.asarray(padded), model))[0, : len(tokens)]


def _prompts(tokenizer: Tokenizer, lengths: list[int]) -> list[list[int]]:
  rng = np.random.default_rng(5)
  return [[tokenizer.bos_id, *rng.integers(1, 40, size=length - 1).tolist()] for length in lengths]


def _engine(
  params: Any, model: Model, grammar: Grammar, *, layout: Layout = ONE_DEVICE, slots: int = 4, **options: Any
) -> Engine:
  decoding = Decoding(turn_tokens=24, block_steps=16, **options)
  return Engine(params, model, layout, grammar=grammar, slots=slots, length=LENGTH, decoding=decoding)


def _turns(engine: Engine, prompts: dict[int, list[int]]) -> dict[int, Turn]:
  for slot, prompt in prompts.items():
    engine.reset(slot, seed=slot)
    engine.feed(slot, prompt)
  turns: dict[int, Turn] = {}
  while engine.busy:
    turns |= engine.decode()
  return turns


def test_greedy_turns_and_their_log_probabilities_are_those_of_the_training_forward(
  tokenizer: Tokenizer, params: Any, model: Model, grammar: Grammar
):
  prompts = dict(enumerate(_prompts(tokenizer, [3, 17, 40, 70])))  # one token up to several prefills
  for slot, turn in _turns(_engine(params, model, grammar), prompts).items():
    logits = _forward(params, model, prompts[slot] + list(turn.tokens))
    steps = logits[len(prompts[slot]) - 1 : -1]
    allowed = steps.copy()
    allowed[:, list(grammar.forbidden)] = -np.inf
    assert list(turn.tokens) == allowed.argmax(-1).tolist()
    expected = jax.nn.log_softmax(steps, axis=-1)[np.arange(len(turn.tokens)), list(turn.tokens)]
    np.testing.assert_allclose(turn.log_probs, expected, atol=1e-5)


def test_an_observation_after_a_turn_continues_the_same_sequence(
  tokenizer: Tokenizer, params: Any, model: Model, grammar: Grammar
):
  engine = _engine(params, model, grammar)
  prompt, observation = _prompts(tokenizer, [20, 22])
  first = _turns(engine, {1: prompt})[1]
  engine.feed(1, observation)
  turns: dict[int, Turn] = {}
  while engine.busy:
    turns |= engine.decode()
  whole = _turns(_engine(params, model, grammar), {0: prompt + list(first.tokens) + observation})[0]
  assert turns[1].tokens == whole.tokens
  np.testing.assert_allclose(turns[1].log_probs, whole.log_probs, atol=1e-5)


def test_a_reused_slot_holds_no_trace_of_the_old_episode(tokenizer: Tokenizer, params: Any, model: Model, grammar: Grammar):
  long, short = _prompts(tokenizer, [80, 9])
  fresh = _turns(_engine(params, model, grammar), {2: short})
  engine = _engine(params, model, grammar)
  _turns(engine, {2: long})
  assert _turns(engine, {2: short}) == fresh


def test_a_rows_turn_does_not_depend_on_its_neighbours(tokenizer: Tokenizer, params: Any, model: Model, grammar: Grammar):
  prompts = _prompts(tokenizer, [12, 33, 60, 5])
  together = _turns(_engine(params, model, grammar, temperature=1.0), dict(enumerate(prompts)))
  for slot, prompt in enumerate(prompts):
    alone = _turns(_engine(params, model, grammar, temperature=1.0), {slot: prompt})
    assert alone[slot].tokens == together[slot].tokens


def test_what_is_taken_back_has_never_been(tokenizer: Tokenizer, params: Any, model: Model, grammar: Grammar):
  prompt, instead = _prompts(tokenizer, [30, 8])
  engine = _engine(params, model, grammar)
  first = _turns(engine, {0: prompt})[0]
  engine.retract(0, len(first.tokens) - 4)
  engine.feed(0, instead)
  turns: dict[int, Turn] = {}
  while engine.busy:
    turns |= engine.decode()
  direct = _turns(_engine(params, model, grammar), {0: prompt + list(first.tokens[:4]) + instead})[0]
  assert turns[0].tokens == direct.tokens
  # Nothing at all appended: the last token is written again.
  engine.retract(0, len(turns[0].tokens))
  engine.feed(0, [])
  again: dict[int, Turn] = {}
  while engine.busy:
    again |= engine.decode()
  assert again[0].tokens == direct.tokens


@pytest.mark.parametrize(
  ("sizes", "replicated"),
  [
    ({"data": 8}, True),
    ({"data": 2, "fsdp": 2, "tensor": 2}, True),
    ({"data": 2, "fsdp": 2, "tensor": 2}, False),
    ({"fsdp": 2, "context": 2, "tensor": 2}, False),
  ],
  ids=[
    "data",
    "data-fsdp-tensor",
    "data-fsdp-tensor, weights cut along tensor",
    "fsdp-context-tensor, weights cut along tensor",
  ],
)
def test_every_mesh_decodes_the_same(
  tokenizer: Tokenizer,
  params: Any,
  model: Model,
  grammar: Grammar,
  monkeypatch: pytest.MonkeyPatch,
  sizes: dict[str, int],
  replicated: bool,
):
  if not replicated:
    monkeypatch.setattr(programs, "REPLICATED_BYTES", 0)
  prompts = dict(enumerate(_prompts(tokenizer, [5, 20, 40, 70, 6, 21, 41, 71])))
  layout = Layout(make_mesh(Mesh(**sizes)))
  sharded = jax.tree.map(
    lambda leaf, names: jax.device_put(leaf, layout.sharding(*names)), params, transformer.logical_axes(model)
  )
  expected = _turns(_engine(params, model, grammar, slots=8), prompts)
  turns = _turns(_engine(sharded, model, grammar, layout=layout, slots=8), prompts)
  for slot in prompts:
    assert turns[slot].tokens == expected[slot].tokens
    np.testing.assert_allclose(turns[slot].log_probs, expected[slot].log_probs, atol=1e-5)


def test_a_second_engine_with_other_weights_compiles_nothing(tokenizer: Tokenizer, params: Any, model: Model, grammar: Grammar):
  prompts = dict(enumerate(_prompts(tokenizer, [40, 10])))
  first = _turns(_engine(params, model, grammar), prompts)
  sizes = programs.decode._cache_size(), programs.prefill._cache_size()
  second = _turns(_engine(jax.tree.map(lambda leaf: leaf * 1.5, params), model, grammar), prompts)
  assert (programs.decode._cache_size(), programs.prefill._cache_size()) == sizes
  assert first != second


def test_parameters_that_predict_further_tokens_are_left_out_and_change_nothing(
  tokenizer: Tokenizer, params: Any, model: Model, grammar: Grammar
):
  prompts = dict(enumerate(_prompts(tokenizer, [40, 10])))
  deep = dataclasses.replace(model, mtp_depth=1)
  engine = _engine(jax.jit(transformer.init, static_argnums=0)(deep, jax.random.key(3)), deep, grammar)
  plain = _engine(params, model, grammar)
  assert engine.program == plain.program  # one compilation serves both
  assert _turns(engine, prompts) == _turns(plain, prompts)


def test_the_harness_words_are_never_sampled(tokenizer: Tokenizer, params: Any, model: Model, grammar: Grammar):
  prompts = dict(enumerate(_prompts(tokenizer, [10, 11, 12, 13])))
  turns = _turns(_engine(params, model, grammar, temperature=20.0), prompts)
  sampled = {token for turn in turns.values() for token in turn.tokens}
  assert sampled and not sampled & set(grammar.forbidden)


def test_a_turn_is_cut_at_its_limit_and_at_the_end_of_the_slot(
  tokenizer: Tokenizer, params: Any, model: Model, grammar: Grammar
):
  # The end is forbidden, so that no turn can close.
  endless = Grammar(
    vocab_size=grammar.vocab_size, end=grammar.end, openers=grammar.openers, handover=grammar.handover,
    forbidden=(*grammar.forbidden, grammar.end),
  )  # fmt: skip
  prompts = dict(enumerate(_prompts(tokenizer, [10, LENGTH - 10])))
  turns = _turns(_engine(params, model, endless), prompts)
  assert (len(turns[0].tokens), turns[0].closed, turns[0].full) == (24, False, False)
  assert (len(turns[1].tokens), turns[1].closed, turns[1].full) == (10, False, True)


def test_a_turn_closes_at_the_end_of_a_call_and_goes_on_after_a_plan(
  tokenizer: Tokenizer, params: Any, model: Model, grammar: Grammar
):
  call, plan, end = tokenizer.id("call"), tokenizer.id("plan"), tokenizer.end_id
  only = Grammar(
    vocab_size=grammar.vocab_size, end=end, openers=grammar.openers, handover=grammar.handover,
    forbidden=tuple(token for token in range(grammar.vocab_size) if token not in (call, plan, end)),
  )  # fmt: skip
  prompts = dict(enumerate(_prompts(tokenizer, [10, 20, 30, 41])))
  turns = _turns(_engine(params, model, only, temperature=50.0), prompts)
  assert any(turn.closed for turn in turns.values())
  for turn in turns.values():
    closes = [n for n in range(1, len(turn.tokens)) if turn.tokens[n] == end and turn.tokens[n - 1] == call]
    assert closes == ([len(turn.tokens) - 1] if turn.closed else [])
    assert turn.closed or len(turn.tokens) == DECODING.turn_tokens


def test_slots_are_rounded_up_to_what_the_devices_can_share(params: Any, model: Model, grammar: Grammar):
  assert _engine(params, model, grammar, layout=Layout(make_mesh(Mesh(data=4, tensor=2))), slots=9).slots == 16


def test_an_engine_runs_where_implicit_transfers_are_forbidden(
  tokenizer: Tokenizer, params: Any, model: Model, grammar: Grammar
):
  layout = Layout(make_mesh(Mesh(data=8)))
  placed = jax.device_put(params, layout.sharding())
  with jax.transfer_guard("disallow"):
    turns = _turns(_engine(placed, model, grammar, layout=layout, slots=8), dict(enumerate(_prompts(tokenizer, [5, 40]))))
  assert set(turns) == {0, 1}
