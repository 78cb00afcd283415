"""The compiled text is read as a hand counts it: programs of the CPU compiler, and the forms that only TPU programs have."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from maxagent.config.schema import Mesh
from maxagent.errors import PlanError
from maxagent.parallel import make_mesh
from maxagent.plan.chips import topology
from maxagent.plan.collectives import Places, traffic
from maxagent.plan.hlo import Collective, Program, read_groups, read_program

TURNS = 5


def places(slices: int = 1) -> Places:
  """Of a mesh of eight; two slices have a program each for their half."""
  mesh = make_mesh(Mesh(data=2, fsdp=4))
  coords = np.stack(np.unravel_index(np.arange(8), (2, 2, 2)), axis=1).tolist()
  return Places(topology("v5p:2x2x2" if slices == 1 else "v5p:2x2x1", slices), dict(mesh.shape), coords)


@functools.cache
def looping_program() -> Program:
  """TURNS times a [4, 16] by [16, 16] product whose summed dimension is cut along fsdp, and the sum over fsdp."""
  mesh = make_mesh(Mesh(data=2, fsdp=4))

  def local(x: jax.Array, w: jax.Array) -> jax.Array:
    def turn(x: jax.Array, _: None) -> tuple[jax.Array, None]:
      part = jax.lax.dynamic_slice_in_dim(x, 4 * jax.lax.axis_index("fsdp"), 4, axis=1)
      return jnp.tanh(jax.lax.psum(part @ w, "fsdp")), None

    return jax.lax.scan(turn, x, None, length=TURNS)[0]

  specs = (PartitionSpec("data"), PartitionSpec("fsdp"))
  run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
  shapes = [
    jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    for shape, spec in zip(((8, 16), (16, 16)), specs, strict=True)
  ]
  return read_program(jax.jit(run).lower(*shapes).compile().as_text())


def test_products_in_a_loop_are_counted_once_for_every_turn():
  assert looping_program().unread_loops == 0
  assert looping_program().product_flops == TURNS * 2 * 4 * 4 * 16


def test_collectives_in_a_loop_are_counted_once_for_every_turn_and_named_by_their_axis():
  (one,) = traffic(looping_program(), places())
  assert (one.kind, one.axes, one.network, one.times) == ("all-reduce", "fsdp", "ICI", TURNS)
  assert one.sent_bytes == TURNS * 2 * (4 * 16 * 4) * 3 / 4


BETWEEN = """ENTRY %main (a: f32[1,8,128]) -> f32[1,8,128] {
  %send.17 = (f32[1,8,128]{2,1,0:T(8,128)}, u32[]{:S(2)}, token[]) send(%all-reduce.175, %after-all.17), channel_id=4, \
is_host_transfer=true, frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""


def test_a_sum_between_slices_is_read_from_what_is_handed_to_the_network():
  (one,) = traffic(read_program(BETWEEN), places(slices=2))
  assert (one.kind, one.axes, one.network) == ("all-reduce", "data", "DCN")
  assert one.sent_bytes == 2 * 8 * 128 * 4 * 1 / 2
  assert one.seconds == pytest.approx(one.sent_bytes / (25e9 / 4))  # four chips share a host's network


def test_links_of_every_dimension_are_used_and_both_ways_only_where_it_closes():
  def seconds(shape: str, groups: np.ndarray) -> float:
    collective = Collective(kind="all-gather", size_bytes=1e9, groups=groups, times=1)
    where = topology(f"v5p:{shape}")
    coords = np.stack(np.unravel_index(np.arange(where.chips), where.shape), axis=1).tolist()
    mesh = {"data": 1, "fsdp": where.chips}
    (one,) = traffic(Program(collectives=(collective,), product_flops=0, unread_loops=0), Places(where, mesh, coords))
    return one.seconds

  assert seconds("4x4x4", np.arange(4)[None, :]) == pytest.approx(1e9 * 3 / 4 / (2 * 1e11))  # one ring
  assert seconds("8x8x8", np.arange(4)[None, :]) == pytest.approx(1e9 * 3 / 4 / 1e11)  # a part of a ring is a line
  assert seconds("2x2x2", np.arange(8)[None, :]) == pytest.approx(1e9 * 7 / 8 / (3 * 1e11))  # three lines


def test_every_form_of_replica_groups_is_read():
  pairs = [[0, 1], [2, 3]]
  assert read_groups("replica_groups={{0,1},{2,3}}, x={}", 4).tolist() == pairs
  assert read_groups("replica_groups=[2,2]<=[4]", 4).tolist() == pairs
  assert read_groups("replica_groups=[2,2]<=[2,2]T(1,0), x", 4).tolist() == [[0, 2], [1, 3]]
  assert read_groups("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", 4).tolist() == pairs
  assert read_groups("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", 4).tolist() == [[0, 2], [1, 3]]
  assert read_groups("replica_groups=mesh['a'=4] {'a':(2)2}, x", 4).tolist() == pairs
  assert read_groups("replica_groups=mesh['a'=4] {'a':(1)2}, x", 4).tolist() == [[0, 2], [1, 3]]
  assert read_groups("replica_groups={}", 4).tolist() == [[0, 1, 2, 3]]


TPU_TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=4

%all-reduce-scatter.1 (input: bf16[64,32]) -> bf16[16,32] {
  %input = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[64,32]{1,0:T(8,128)(2,1)} all-reduce(%input), replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %slice = bf16[16,32]{1,0} dynamic-slice(%all-reduce.1), dynamic_slice_sizes={16,32}
}

%condition (state: (s32[], bf16[64,32])) -> pred[] {
  %turns = s32[]{:T(128)} constant(3), backend_config={"flag_configs":[]}
  %state = (s32[]{:T(128)}, bf16[64,32]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %turns), direction=LT
}

%body (state.1: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %state.1 = (s32[]{:T(128)}, bf16[64,32]{1,0}) parameter(0)
  %x = bf16[64,32]{1,0} get-tuple-element(%state.1), index=1
  %fusion.1 = bf16[16,32]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %start = (bf16[16,32]{1,0}, bf16[64,32]{1,0:S(1)}) all-gather-start(%fusion.1), replica_groups=[1,4]<=[4], dimensions={0}
  %done = bf16[64,32]{1,0} all-gather-done(%start)
  ROOT %out = (s32[], bf16[64,32]{1,0}) tuple(%i, %done)
}

ENTRY %main (a: bf16[8,64,32], b: bf16[8,32,16]) -> bf16[8,64,16] {
  %a = bf16[8,64,32]{2,1,0} parameter(0)
  %b = bf16[8,32,16]{2,1,0} parameter(1)
  %loop = (s32[]{:T(128)}, bf16[64,32]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %batched = bf16[8,64,16]{2,1,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}
"""


def test_a_tpu_programs_scatter_gather_and_loop_without_a_stated_count_are_read():
  program = read_program(TPU_TEXT)
  assert program.unread_loops == 0
  kinds = {one.kind: (one.size_bytes, one.times) for one in program.collectives}
  assert kinds == {"reduce-scatter": (64 * 32 * 2, 3), "all-gather": (64 * 32 * 2, 3)}


OUTER = """ENTRY %main (a: bf16[8,64,32,1], b: bf16[2,16,32,1]) -> bf16[8,64,2,16] {
  %a = bf16[8,64,32,1]{2,1,0,3} parameter(0)
  %b = bf16[2,16,32,1]{3,2,1,0} parameter(1)
  ROOT %c = bf16[8,64,2,16]{3,2,1,0} convolution(%a, %b), dim_labels=0bf1_1oi0->0b1f, window={size=1x2 pad=0_0x1_1}
}
"""


def test_products_written_as_convolutions_count_no_padding():
  assert read_program(TPU_TEXT).product_flops == 8 * 2 * 64 * 32 * 16  # of a batch: eight products
  # Two windows over one place with a place of padding on either side: each of 8 x 2 results meets an input once, not twice.
  assert read_program(OUTER).product_flops == 2 * 64 * 32 * 16 * 8 * 2


def test_a_loop_that_cannot_be_read_is_counted_once_and_told():
  program = read_program(TPU_TEXT.replace("direction=LT", "direction=NE"))
  assert program.unread_loops == 1
  assert {one.times for one in program.collectives} == {1}


def test_a_form_of_groups_that_is_not_known_is_refused():
  with pytest.raises(PlanError, match=r"replica_groups=ring.*no form of replica groups"):
    read_groups("replica_groups=ring(4)", 4)
