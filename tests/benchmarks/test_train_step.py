"""The benchmark computes what it says: its first loss is that of a decoder written out here from the formulas."""

import importlib.util
import json
import pathlib
import subprocess
import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxagent.objectives.combine import loss_sums
from maxagent.parallel import Layout
from maxagent_kernels.attention import attention_reference

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "train_step.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
  spec = importlib.util.spec_from_file_location("train_step_benchmark", SCRIPT)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _normalised(x_BTD: jax.Array) -> jax.Array:
  return x_BTD / jnp.sqrt(jnp.mean(x_BTD**2, axis=-1, keepdims=True) + 1e-5)


def _turned(x_BTNH: jax.Array) -> jax.Array:
  """RoPE as a product of complex numbers: pair p is (x[p], x[p + H/2]), turned by position * 10000^(-2p/H)."""
  half = x_BTNH.shape[-1] // 2
  angles = np.arange(x_BTNH.shape[1])[:, None] * 10_000.0 ** (-np.arange(half) / half)[None]
  turned = jax.lax.complex(x_BTNH[..., :half], x_BTNH[..., half:]) * jnp.exp(1j * angles)[None, :, None]
  return jnp.concatenate([turned.real, turned.imag], axis=-1)


def _plain_loss(params: dict, tokens_BT: jax.Array) -> float:
  x_BTD = params["embedding"]["table"][tokens_BT]
  length = tokens_BT.shape[1]
  visible = jnp.tril(jnp.ones((length, length), bool))[None]
  for i in range(4):
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["pattern"]["0"])
    attention, mlp = layer["attention"], layer["mlp"]
    h = _normalised(x_BTD)
    q, k, v = (jnp.einsum("BTD,DNH->BTNH", h, attention[name]) for name in ("query", "key", "value"))
    attended, _ = attention_reference(_turned(q), _turned(k), v, visible_BTS=visible)
    x_BTD = x_BTD + jnp.einsum("BTNH,NHD->BTD", attended, attention["out"])
    h = _normalised(x_BTD)
    x_BTD = x_BTD + (jax.nn.silu(h @ mlp["gate"]) * (h @ mlp["up"])) @ mlp["down"]
  log_p_BTV = jax.nn.log_softmax(_normalised(x_BTD)[:, :-1] @ params["embedding"]["head"])
  return float(-jnp.mean(jnp.take_along_axis(log_p_BTV, tokens_BT[:, 1:, None], axis=-1)))


def test_its_first_loss_is_that_of_a_plain_decoder(benchmark: ModuleType):
  params, batch = benchmark.plain_weights(jax.random.key(0)), next(benchmark.batches())
  numerator, sums = loss_sums(params, batch, config=benchmark.config(1, "none"), layout=Layout())
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 4_458_752
  assert float(numerator / sums.weight) == pytest.approx(_plain_loss(params, batch.tokens), rel=1e-4)


@pytest.mark.slow
def test_the_command_prints_one_json_object():
  done = subprocess.run([sys.executable, SCRIPT, "--json", "--steps=5"], capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  result = json.loads(done.stdout)
  assert result["median_cpu_seconds"] > 0 and result["peak_rss_mib"] > 100
  assert result["last_loss"] < result["first_loss"]
