import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxagent.config import Mesh
from maxagent.objectives.cross_entropy import token_losses
from maxagent.parallel import Layout, make_mesh

pytestmark = pytest.mark.smoke


MESHES = [None, Mesh(data=8), Mesh(fsdp=4, tensor=2), Mesh(data=2, context=2, tensor=2), Mesh(fsdp=2, context=4)]


def _layout(mesh: Mesh | None) -> Layout:
  return Layout(None if mesh is None else make_mesh(mesh))


def _inputs(T: int, V: int = 12, B: int = 8) -> tuple[jax.Array, jax.Array, jax.Array]:
  keys = jax.random.split(jax.random.key(0), 3)
  hidden_BTD = jax.random.normal(keys[0], (B, T, 4))
  return hidden_BTD, jax.random.normal(keys[1], (4, V)), jax.random.randint(keys[2], (B, T), 0, V)


@pytest.mark.parametrize(("T", "mesh"), [(1, None), (4, None), (10, None), *((20, mesh) for mesh in MESHES)])
def test_chunked_losses_equal_a_numpy_softmax(T: int, mesh: Mesh | None):
  layout = _layout(mesh)
  hidden_BTD, head_DV, targets_BT = _inputs(T)
  losses_BT, log_z_BT = token_losses(hidden_BTD, head_DV, targets_BT, chunk_tokens=4, layout=layout)
  logits_BTV = np.asarray(hidden_BTD, np.float64) @ np.asarray(head_DV, np.float64)
  expected_BT = np.log(np.exp(logits_BTV).sum(-1))
  np.testing.assert_allclose(log_z_BT, expected_BT, rtol=1e-5)
  chosen_BT = np.take_along_axis(logits_BTV, np.asarray(targets_BT)[..., None], -1)[..., 0]
  np.testing.assert_allclose(losses_BT, expected_BT - chosen_BT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_gradients_equal_those_of_a_numpy_oracle(mesh: Mesh | None):
  layout = _layout(mesh)
  hidden_BTD, head_DV, targets_BT = _inputs(20)
  weights_BT = jnp.linspace(0, 1, 160).reshape(8, 20)

  def loss(hidden_BTD: jax.Array, head_DV: jax.Array) -> jax.Array:
    losses_BT, log_z_BT = token_losses(hidden_BTD, head_DV, targets_BT, chunk_tokens=4, layout=layout)
    return jnp.sum(weights_BT * (losses_BT + 0.1 * log_z_BT**2))

  grad_hidden_BTD, grad_head_DV = jax.jit(jax.grad(loss, (0, 1)))(hidden_BTD, head_DV)
  h, w, weights = (np.asarray(x, np.float64) for x in (hidden_BTD, head_DV, weights_BT))
  logits = h @ w
  log_z = np.log(np.exp(logits).sum(-1, keepdims=True))
  p = np.exp(logits - log_z)
  grad_logits = p - np.eye(w.shape[1])[np.asarray(targets_BT)] + 0.2 * log_z * p
  grad_logits *= weights[..., None]
  np.testing.assert_allclose(grad_hidden_BTD, grad_logits @ w.T, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(grad_head_DV, np.einsum("BTD,BTV->DV", h, grad_logits), rtol=1e-4, atol=1e-5)


def test_no_array_as_large_as_all_logits_exists_forward_or_backward():
  hidden_BTD, head_DV, targets_BT = _inputs(64, V=50, B=2)

  def loss(hidden_BTD: jax.Array, head_DV: jax.Array) -> jax.Array:
    return token_losses(hidden_BTD, head_DV, targets_BT, chunk_tokens=8, layout=Layout())[0].sum()

  text = jax.jit(jax.grad(loss, (0, 1))).lower(hidden_BTD, head_DV).as_text()
  assert "2x8x50xf32" in text
  assert "2x64x50xf32" not in text and "8x2x8x50xf32" not in text


def test_on_a_mesh_the_head_is_gathered_once_and_its_gradient_reduced_once():
  layout = _layout(Mesh(data=2, fsdp=4))
  inputs = [
    jax.device_put(x, layout.sharding(*axes))
    for x, axes in zip(_inputs(64, V=24), [("batch", "length", None), ("embed", "vocab"), ("batch", "length")], strict=True)
  ]

  def loss(hidden_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    return token_losses(hidden_BTD, head_DV, targets_BT, chunk_tokens=8, layout=layout)[0].sum()

  text = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*inputs).compile().as_text()
  entry = text.index("ENTRY ")
  collectives = [(m.start(), m[1]) for m in re.finditer(r" (all-gather|all-reduce|reduce-scatter|all-to-all)\(", text)]
  assert [name for at, name in collectives if at < entry] == []  # the loops over chunks
  assert sorted(name for at, name in collectives if at > entry) == ["all-gather", "all-reduce", "all-reduce", "reduce-scatter"]


@pytest.mark.parametrize("mesh", [None, Mesh(data=2, fsdp=2, tensor=2), Mesh(data=2, context=2, tensor=2)])
def test_the_kernel_gives_the_losses_and_gradients_of_the_chunks(mesh: Mesh | None):
  layout = _layout(mesh)
  hidden_BTD, head_DV, targets_BT = _inputs(4, V=130)
  weights_BT = jnp.linspace(0, 1, 32).reshape(8, 4)

  def loss(hidden_BTD: jax.Array, head_DV: jax.Array, backend: str) -> tuple[jax.Array, jax.Array]:
    losses_BT, log_z_BT = token_losses(hidden_BTD, head_DV, targets_BT, chunk_tokens=4, layout=layout, backend=backend)
    return jnp.sum(weights_BT * (losses_BT + 0.1 * log_z_BT**2)), losses_BT

  got, expected = (
    jax.jit(jax.value_and_grad(functools.partial(loss, backend=backend), (0, 1), has_aux=True))(hidden_BTD, head_DV)
    for backend in ("pallas", "xla")
  )
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, expected)
