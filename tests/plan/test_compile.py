"""The real step, compiled for real topologies, where libtpu is installed (`make test-kernels` installs it)."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib

import pytest

from maxagent import config as configs
from maxagent.config import Config, Data, Mesh, Model
from maxagent.errors import MeshError, PlanError
from maxagent.parallel import make_mesh
from maxagent.plan import estimate
from maxagent.plan.chips import CHIPS, examples, topology
from maxagent.plan.compile import compile_for, require_libtpu

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = Config(
  name="small",
  model=Model(
    vocab_size=1024, hidden_size=256, mlp_size=512, heads=4, kv_heads=2, head_size=64, pattern=("global",), repeats=3,
    attention="pallas",
  ),
  mesh=Mesh(fsdp=4),
  data=Data(sequence_tokens=512, global_batch=32),
)  # fmt: skip

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
pytestmark = pytest.mark.timeout(1800)  # on a machine that others use too


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_the_cure_is_named():
  with pytest.raises(PlanError, match=r"libtpu.*pip install 'maxagent\[tpu\]'"):
    require_libtpu()


@needs_libtpu
def test_the_step_is_compiled_across_two_slices_and_the_network_between_them_carries_the_gradients(tmp_path, monkeypatch):
  monkeypatch.setenv("MAXAGENT_CACHE", str(tmp_path))
  plan = estimate.make(SMALL, topology("v5p:2x2x1", slices=2))
  assert plan.mesh["data"] == 2 and plan.mesh["fsdp"] == 4
  assert plan.memory.fits
  assert plan.unread_loops == 0
  assert {one.axes for one in plan.traffic if one.network == "DCN"} <= {"data", "data+fsdp"}
  # The gradients of a device's parameters, there and back between two slices; the compiler chooses bfloat16 or float32.
  crossing = sum(one.sent_bytes for one in plan.traffic if one.network == "DCN")
  assert 0.5 * plan.memory.parameters < crossing < 1.1 * plan.memory.parameters
  # Forward, backward and again, three layers in a loop: what the config counts outside of the kernels.
  tokens, flops = SMALL.tokens_per_step / plan.topology.devices, plan.flops
  counted = 3 * (flops.layers + flops.head) + flops.layers + flops.head
  assert plan.products == pytest.approx(counted * tokens, rel=0.2)
  again = estimate.make(SMALL, plan.topology)  # from the cache
  assert again == plan


@needs_libtpu
def test_a_mesh_that_does_not_fit_is_refused_as_the_run_would_refuse_it():
  with pytest.raises(MeshError, match=r"v5p:2x2x1 \(4 chips\): mesh.fsdp.* = 3 does not divide the 4 devices"):
    compile_for(dataclasses.replace(SMALL, mesh=Mesh(fsdp=3)), topology("v5p:2x2x1"))
  with pytest.raises(MeshError, match=r"mesh.data = 1 on 2 slices: only the data axis may cross"):
    compile_for(dataclasses.replace(SMALL, mesh=Mesh(fsdp=8)), topology("v5p:2x2x1", slices=2))


@needs_libtpu
def test_a_shape_that_no_slice_has_is_refused_in_libtpus_own_words():
  with pytest.raises(PlanError, match=r"libtpu refuses v5p:3x3x3.*not divisible"):
    compile_for(SMALL, topology("v5p:3x3x3"))


@needs_libtpu
def test_every_kind_of_chip_and_4096_chips_are_described():
  from jax.experimental import topologies

  for name in (*examples().values(), "v5p:16x16x16"):
    where = topology(name)
    layout = {"chip_config_name": where.chip.layout} if where.chip.layout else {}
    described = topologies.get_topology_desc(where.name, "tpu", **layout)
    mesh = make_mesh(Mesh(fsdp=4), described.devices)  # also where 4 is only a part of a dimension of the torus
    assert mesh.size == where.devices == len(set(mesh.devices.flat))


@needs_libtpu
@pytest.mark.kernels
@pytest.mark.parametrize("kind", CHIPS)
def test_the_step_compiles_for_every_kind_of_chip_with_its_kernels(kind, tmp_path, monkeypatch):
  monkeypatch.setenv("MAXAGENT_CACHE", str(tmp_path))
  shape = "2x2" if CHIPS[kind].dimensions == 2 else "2x2x1"
  plan = estimate.make(SMALL, topology(f"{kind}:{shape}"))
  assert plan.memory.fits and plan.traffic


@needs_libtpu
@pytest.mark.kernels
def test_the_100m_config_fits_a_small_slice_and_its_executable_can_be_kept(tmp_path, monkeypatch):
  monkeypatch.setenv("MAXAGENT_CACHE", str(tmp_path))
  config = configs.load([f"--config={ROOT / 'configs' / 'base_100m.py'}"])
  plan = estimate.make(config, topology("v5p:2x2x2"), save=tmp_path / "cache")
  assert plan.memory.fits and 0 < plan.best.mfu < 1
  (kept,) = (tmp_path / "cache").glob("jit_step-*-cache")
  assert kept.stat().st_size > 1e6


@needs_libtpu
@pytest.mark.kernels
def test_a_model_that_is_too_large_is_told_by_how_much(tmp_path, monkeypatch):
  monkeypatch.setenv("MAXAGENT_CACHE", str(tmp_path))
  config = configs.load([f"--config={ROOT / 'configs' / 'base_1b.py'}", "--config.mesh.fsdp=4"])
  plan = estimate.make(config, topology("v5e:2x2"))
  assert not plan.memory.fits and plan.memory.verdict().startswith("DOES NOT FIT by ")
  assert estimate.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
