"""What arithmetic leaves of all settings before anything is compiled."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from maxagent import config as configs
from maxagent.config import Config
from maxagent.errors import PlanError
from maxagent.plan import flops
from maxagent.plan.chips import topology
from maxagent.plan.memory import activations, least
from maxagent.plan.search import candidates, search, settings

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIG = configs.load([f"--config={ROOT / 'configs' / 'base_8b.py'}"])


def test_candidates_divide_what_must_be_divided_and_use_every_device():
  where = topology("v5p:4x4x4", slices=2)
  found = candidates(BIG, where)
  assert found
  for one in found:
    mesh, parts = one.config.mesh, one.config.training.microbatches
    assert mesh.data * mesh.fsdp * mesh.context * mesh.tensor == where.devices
    assert BIG.model.kv_heads % mesh.tensor == 0
    assert BIG.data.global_batch % (parts * mesh.data * mesh.fsdp) == 0
    assert mesh.data % 2 == 0  # no other axis crosses slices
    assert one.least_bytes <= where.chip.hbm_bytes


def test_candidates_are_ranked_by_their_bound_then_by_what_is_not_overlapped():
  ranks = [one.rank for one in candidates(BIG, topology("v5p:4x4x8"))]
  assert ranks == sorted(ranks)


def test_recomputation_is_left_out_where_its_memory_is_there_and_kept_where_it_is_not():
  roomy, tight = (candidates(BIG, topology(name)) for name in ("v5p:8x8x4", "v5p:2x2x4"))
  assert roomy[0].config.model.remat == "none"
  by_remat = {one.config.model.remat: one for one in reversed(tight)}
  assert by_remat["block"].least_bytes < BIG.data.global_batch * 1e9  # some candidate is left on a small slice too
  assert min(one.least_bytes for one in tight if one.config.model.remat == "block") < min(
    one.least_bytes for one in tight if one.config.model.remat == "none"
  )


def test_a_model_that_no_mesh_can_hold_is_refused_before_anything_is_compiled():
  with pytest.raises(PlanError, match=r"no mesh of 1 devices fits base_8b.*--min-chips"):
    search(BIG, topology("v5e:1x1"), compiled=1)


def test_more_microbatches_and_more_cutting_need_less_memory():
  mesh = {"data": 1, "fsdp": 16, "expert": 1, "context": 1, "tensor": 4}
  parameters = flops.parameters(BIG.model)

  def bytes_of(parts: int, **sizes: int) -> float:
    changed: Config = dataclasses.replace(BIG, training=dataclasses.replace(BIG.training, microbatches=parts))
    return least(changed, mesh | sizes, parameters)

  assert bytes_of(4) < bytes_of(1)
  assert bytes_of(1, fsdp=32) < bytes_of(1)


def test_kept_activations_are_what_a_hand_counts():
  mesh = {"data": 1, "fsdp": 64, "expert": 1, "context": 1, "tensor": 4}
  tokens = 512 * 8192 / 64
  # bfloat16 of the stream before each of 8 blocks of 4 layers; of 8 of 32 heads in 32 layers the result, and a float32 each.
  assert activations(BIG, mesh) == tokens * (2 * 4096 * 8 + 32 * 8 * (2 * 128 + 4))


def test_settings_are_told_as_flags_that_the_command_line_takes():
  best = candidates(BIG, topology("v5p:4x4x4"))[0].config
  assert configs.load([f"--config={ROOT / 'configs' / 'base_8b.py'}", *settings(best).split()]) == best
