import jax
import jax.numpy as jnp
import numpy as np

from maxagent_kernels.attention import attention_reference


def test_two_keys_are_weighed_by_hand():
  q = jnp.array([[[[2.0, 0.0, 0.0, 0.0]]]])
  k = jnp.array([[[[np.log(3.0), 0.0, 0.0, 0.0]], [[0.0, 5.0, 0.0, 0.0]]]])
  v = jnp.array([[[[1.0, 0, 0, 0]], [[0, 1.0, 0, 0]]]])
  out, lse = attention_reference(q, k, v, visible_BTS=jnp.ones((1, 1, 2), bool))
  np.testing.assert_allclose(out[0, 0, 0], [0.75, 0.25, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(lse[0, 0, 0], np.log(4.0), rtol=1e-6)


def test_query_heads_share_key_heads_in_order():
  q, k = jnp.ones((1, 1, 4, 2)), jnp.ones((1, 1, 2, 2))
  v = jnp.arange(4.0).reshape(1, 1, 2, 2)
  out, _ = attention_reference(q, k, v, visible_BTS=jnp.ones((1, 1, 1), bool))
  np.testing.assert_array_equal(out[0, 0], [[0, 1], [0, 1], [2, 3], [2, 3]])


def test_a_query_that_sees_nothing_gives_zeros_and_finite_gradients():
  x = jax.random.normal(jax.random.key(0), (1, 3, 1, 4))
  visible = jnp.zeros((1, 3, 3), bool).at[0, 1, 0].set(True)
  out, lse = attention_reference(x, x, x, visible_BTS=visible)
  assert (out[0, 0] == 0).all() and lse[0, 0, 0] == -jnp.inf
  grad = jax.grad(lambda x: attention_reference(x, x, x, visible_BTS=visible)[0].sum())(x)
  assert jnp.isfinite(grad).all()
