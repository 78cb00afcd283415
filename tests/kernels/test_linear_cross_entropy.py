import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from maxagent_kernels.cross_entropy import BACKWARD, FORWARD, Blocks, linear_scores, linear_scores_reference
from maxagent_kernels.cross_entropy.backward import scratch as backward_scratch
from maxagent_kernels.cross_entropy.forward import scratch as forward_scratch
from maxagent_kernels.cross_entropy.plan import VMEM_LIMIT_BYTES, make_plan

SMALL = (Blocks(tokens=256, words=256, chunk=128, unit=128), Blocks(tokens=128, words=256, chunk=128, unit=128))
TOKENS, MODEL, VOCABULARY = 300, 256, 640  # two and a half tiles of the vocabulary


def inputs(tokens=TOKENS, model=MODEL, vocabulary=VOCABULARY, dtype=jnp.float32, head_dtype=None):
  """Hidden states, head, targets, and cotangents of log_z and target logit."""
  keys = jax.random.split(jax.random.key(0), 5)
  hidden = jax.random.normal(keys[0], (tokens, model), dtype)
  head = (jax.random.normal(keys[1], (model, vocabulary)) / model**0.5).astype(head_dtype or dtype)
  given = jax.random.normal(keys[3], (tokens,)), jax.random.normal(keys[4], (tokens,))
  return hidden, head, jax.random.randint(keys[2], (tokens,), 0, vocabulary), given


def both(score, hidden, head, targets, given):
  """Log-sum-exp, target logit and the gradients of hidden states and head."""

  def run(hidden, head):
    scores, pull = jax.vjp(lambda *x: tuple(score(*x, targets)), hidden, head)
    return (*scores, *pull(given))

  return jax.jit(run)(hidden, head)


def fused(blocks=SMALL, interpret=True):
  return functools.partial(linear_scores, blocks=blocks, interpret=interpret)


def close(got, expected, tolerance=2e-5, names=("log_z", "target_logit", "d_hidden", "d_head")):
  for name, a, b in zip(names, got, expected, strict=True):
    np.testing.assert_allclose(np.float32(a), np.float32(b), atol=tolerance, rtol=tolerance, err_msg=name)


def test_two_words_are_weighed_by_hand():
  hidden, head = jnp.array([[2.0, 0.0]]), jnp.array([[np.log(3.0) / 2, 0.0], [9.0, -9.0]])
  scores = linear_scores(hidden, head, jnp.array([0]), interpret=True)
  np.testing.assert_allclose([scores.log_z[0], scores.target_logit[0]], [np.log(4.0), np.log(3.0)], rtol=1e-6)


@pytest.mark.parametrize(("tokens", "model", "vocabulary"), [(300, 256, 700), (129, 100, 50)])
def test_values_and_gradients_equal_the_reference(tokens, model, vocabulary):
  given = inputs(tokens, model, vocabulary)
  close(both(fused(), *given), both(linear_scores_reference, *given))


@pytest.mark.kernels
@pytest.mark.parametrize("tokens", [1, 128, 300])
@pytest.mark.parametrize("model", [100, 128, 384, 512])
@pytest.mark.parametrize("vocabulary", [130, 256, 512, 640, 1000])
def test_sizes_need_not_be_multiples_of_the_blocks(tokens, model, vocabulary):
  given = inputs(tokens, model, vocabulary)
  close(both(fused(), *given), both(linear_scores_reference, *given))


@pytest.mark.kernels
@pytest.mark.parametrize("unit", [128, 256])
@pytest.mark.parametrize("shape", [(128, 128, 512), (256, 512, 128), (384, 128, 256)])
def test_any_blocks_give_the_same_result(shape, unit):
  given = inputs(tokens=500, model=512)
  close(both(fused((Blocks(*shape, unit),) * 2), *given), both(linear_scores_reference, *given))


def test_a_tile_of_tokens_without_cotangents_is_not_even_read():
  hidden, head, targets, given = inputs()
  live = (jnp.arange(TOKENS) < 128) | (jnp.arange(TOKENS) == 299)  # the second of three tiles has none
  given = tuple(x * live for x in given)
  expected = both(linear_scores_reference, hidden, head, targets, given)
  poisoned = hidden.at[128:256].set(jnp.nan)
  *_, d_hidden, d_head = both(fused(), poisoned, head, targets, given)
  close((d_hidden, d_head), expected[2:], names=("d_hidden", "d_head"))
  assert not d_hidden[128:299].any()


def test_parts_of_a_vocabulary_together_are_the_whole():
  hidden, head, targets, given = inputs()

  def parts(hidden, head, targets):
    each = [fused()(hidden, head[:, first : first + 320], targets - first) for first in (0, 320)]
    return jnp.logaddexp(each[0].log_z, each[1].log_z), each[0].target_logit + each[1].target_logit

  close(both(parts, hidden, head, targets, given), both(linear_scores_reference, hidden, head, targets, given))


def test_logits_of_any_size_do_not_overflow():
  hidden, head, targets, _ = inputs(tokens=128)
  loss = jnp.ones(128), -jnp.ones(128)
  got, expected = (both(score, 1e3 * hidden, head, targets, loss) for score in (fused(), linear_scores_reference))
  assert all(jnp.isfinite(x).all() for x in got)
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)


@pytest.mark.parametrize("copies", ["eager", "on_wait"])
def test_no_copy_races_another(copies):
  # Six chunks of the head, the last of them narrow: more than there are slots. "eager" finds races, "on_wait" what was not
  # waited for.
  given = inputs(tokens=200)
  got = both(fused(interpret=pltpu.InterpretParams(detect_races=True, dma_execution_mode=copies)), *given)
  close(got, both(linear_scores_reference, *given))
  assert not _races_found()


def _races_found() -> bool:
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call

  return bool(interpret_pallas_call.races.races_found)


def test_two_runs_are_equal_to_the_bit():
  hidden, head, targets, given = inputs()
  run = jax.jit(lambda hidden, head: jax.vjp(lambda *x: tuple(fused()(*x, targets)), hidden, head)[1](given))
  for a, b in zip(run(hidden, head), run(hidden, head), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("head_dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16_errs_no_more_than_bfloat16_inputs_explain(head_dtype):
  hidden, head, targets, given = inputs(dtype=jnp.bfloat16, head_dtype=head_dtype)
  got = both(fused(), hidden, head, targets, given)
  assert [x.dtype for x in got] == [jnp.float32, jnp.float32, jnp.bfloat16, head_dtype]
  h, w = (np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (hidden, head))
  logits = h @ w
  log_z = np.log(np.exp(logits).sum(1))
  hot = np.eye(VOCABULARY)[np.asarray(targets)]
  d_logits = np.exp(logits - log_z[:, None]) * np.float64(given[0])[:, None] + hot * np.float64(given[1])[:, None]
  exact = log_z, (hot * logits).sum(1), d_logits @ w.T, h.T @ d_logits
  errors = [np.sqrt(np.mean((np.float64(a) - b) ** 2) / np.mean(b**2)) for a, b in zip(got, exact, strict=True)]
  assert max(errors[:2]) < 1e-6 and max(errors[2:]) < 0.003, errors


def test_nothing_in_memory_has_both_a_token_and_a_word_axis():
  tokens, model, vocabulary = 4096, 256, 65536
  hidden, head = (jax.ShapeDtypeStruct(x, jnp.bfloat16) for x in ((tokens, model), (model, vocabulary)))
  ids, given = jax.ShapeDtypeStruct((tokens,), jnp.int32), jax.ShapeDtypeStruct((tokens,), jnp.float32)

  def run(hidden, head, ids, given):
    scores, pull = jax.vjp(lambda *x: tuple(linear_scores(*x, ids)), hidden, head)
    return scores, pull((given, given))

  jaxpr = jax.make_jaxpr(run)(hidden, head, ids, given)
  sizes = [v.aval.size for equation in jaxpr.eqns for v in equation.outvars if hasattr(v.aval, "size")]
  assert max(sizes) == model * vocabulary < tokens * vocabulary


def planned(hidden, head, blocks, scratch):
  plans = []
  jax.eval_shape(lambda *x: plans.append(make_plan(*x, blocks, scratch, False)), hidden, head)
  return plans


@pytest.mark.parametrize("model", [64, 768, 1408, 2560, 4096, 8192])
def test_a_plan_fits_into_vector_memory_at_any_width(model):
  hidden, head = jax.ShapeDtypeStruct((32768, model), jnp.bfloat16), jax.ShapeDtypeStruct((model, 262144), jnp.float32)
  for blocks, scratch in ((FORWARD, forward_scratch), (BACKWARD, backward_scratch)):
    (plan,) = planned(hidden, head, blocks, scratch)
    assert plan.chunk * plan.chunks == plan.model >= model and plan.rows * plan.chunks == plan.tokens >= 512
    held = [x for x in scratch(plan, jnp.bfloat16, jnp.float32) if x.memory_space == pltpu.VMEM]
    assert sum(np.prod(x.shape) * x.dtype.itemsize for x in held) < VMEM_LIMIT_BYTES


def test_what_cannot_be_computed_is_refused():
  hidden, head, targets, _ = inputs()
  with pytest.raises(ValueError, match=r"expected \[N, D\], \[D, V\] and \[N\]"):
    linear_scores(hidden, head.T, targets)
  with pytest.raises(ValueError, match="expected column numbers"):
    linear_scores(hidden, head, targets.astype(jnp.float32))
  with pytest.raises(ValueError, match="multiple of 128"):
    Blocks(tokens=100, words=128, chunk=128, unit=128)
  with pytest.raises(ValueError, match="choose fewer words"):
    make_plan(jnp.zeros((128, 128)), jnp.zeros((128, 2**20)), Blocks(128, 2**20, 128, 128), forward_scratch, False)
