"""Operations, by hand and against the compiler where that counts right: on a model without a loop."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from maxagent.config import Config, Data, Model, Optimizer
from maxagent.models import transformer
from maxagent.parallel import Layout
from maxagent.plan.flops import count, parameters, visible
from maxagent.plan.hlo import read_program

LENGTH = 32
MODEL = Model(
  vocab_size=96, hidden_size=16, mlp_size=24, heads=4, kv_heads=2, head_size=8, prefix=("global", "local"), repeats=0,
  window_tokens=LENGTH, attention_block_tokens=LENGTH, remat="none", compute_dtype="float32",
)  # fmt: skip
CONFIG = Config(model=MODEL, data=Data(sequence_tokens=LENGTH, global_batch=1))
# D (N + 2 K) H + N H D + 3 D F, twice, for two layers
LAYERS = 2 * 2 * (16 * (4 + 2 * 2) * 8 + 4 * 8 * 16 + 3 * 16 * 24)


def test_a_token_sees_itself_and_what_the_window_leaves_before_it():
  assert visible(4, None) == (1 + 2 + 3 + 4) / 4
  assert visible(4, 2) == (1 + 2 + 2 + 2) / 4
  assert visible(4, 9) == visible(4, None)


def test_a_small_model_counts_what_a_hand_counts():
  flops = count(CONFIG)
  assert flops.layers == LAYERS
  assert flops.attention == 2 * 4 * 4 * 8 * (LENGTH + 1) / 2
  assert flops.head == 2 * 16 * 96
  assert flops.model == 3 * (flops.layers + flops.attention + flops.head)


def test_the_8b_config_counts_the_model_once_and_its_recomputation_apart():
  model = dataclasses.replace(MODEL, remat="block")
  plain, again = count(CONFIG), count(dataclasses.replace(CONFIG, model=model))
  assert again.model == plain.model
  assert again.recomputed - plain.recomputed == plain.layers


def test_a_window_makes_attention_cheaper_and_nothing_else():
  narrow = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, window_tokens=4))
  assert count(narrow).attention < count(CONFIG).attention
  assert count(narrow).layers == count(CONFIG).layers


def test_a_further_token_costs_a_layer_a_joint_and_a_head():
  deeper = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, mtp_depth=1))
  assert count(deeper).layers == LAYERS * 3 / 2 + 2 * 2 * 16 * 16
  assert count(deeper).head == 2 * count(CONFIG).head


def test_muon_turns_every_matrix_five_times_and_adamw_none():
  muon = dataclasses.replace(CONFIG, optimizer=Optimizer(name="muon"))
  # (m, n) of queries, keys and values, output, and three of the MLP; 5 (4 m^2 n + 2 m^3)
  matrices = [(16, 32), (16, 16), (16, 16), (16, 32), (16, 24), (16, 24), (16, 24)]
  assert count(muon).optimizer == 2 * sum(5 * (4 * m * m * n + 2 * m**3) for m, n in matrices)
  assert count(CONFIG).optimizer == 0


def test_parameters_are_those_that_training_moves():
  assert parameters(MODEL) == sum(leaf.size for leaf in jax.tree.leaves(transformer.abstract(MODEL)))


def test_the_compiler_counts_the_same_products_where_there_is_no_loop():
  ids = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)

  def logits(params: dict, tokens: jax.Array, segments: jax.Array, positions: jax.Array) -> jax.Array:
    hidden = transformer.hidden_states(
      params, tokens, segments_BT=segments, positions_BT=positions, config=MODEL, layout=Layout()
    )
    return hidden @ transformer.head(params, MODEL)

  compiled = jax.jit(logits).lower(transformer.abstract(MODEL), ids, ids, ids).compile()
  flops = count(CONFIG)
  # The CPU's attention computes whole tiles, also what the mask hides: LENGTH positions in place of (LENGTH + 1) / 2.
  whole = flops.attention * LENGTH / ((LENGTH + 1) / 2)
  expected = LENGTH * (flops.layers + flops.head + whole)
  assert read_program(compiled.as_text()).product_flops == expected
  # XLA's own count has everything that is no product too: norms, masks, exponentials.
  assert expected == pytest.approx(compiled.cost_analysis()["flops"], rel=0.2)
