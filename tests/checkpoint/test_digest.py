"""Digests see every change and never see the mesh."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding

from maxagent.checkpoint import digest


def whole(values: np.ndarray) -> int:
  return digest.part_of_sum(values.shape, [(tuple(slice(None) for _ in values.shape), values)])


@pytest.mark.parametrize("mesh", ["8x1", "4x2", "2x2x2", "1"])
@pytest.mark.parametrize(
  ("shape", "dtype"),
  [
    ((), np.int32),
    ((7,), np.float32),
    ((64, 48), np.float32),
    ((24, 8, 40), ml_dtypes.bfloat16),
    ((8, 4096), np.int8),
    ((16, 72), np.bool_),
    ((3, 2, 2, 2, 1032), np.float16),
  ],
)
def test_an_array_has_the_same_digest_on_every_mesh_wherever_its_shards_are_cut(kit, mesh, shape, dtype):
  values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
  on = kit.mesh_of(mesh)
  array = jax.device_put(values, NamedSharding(on, kit.spec_of(on, shape)))
  assert digest.start({"x": array})()["x"] == whole(values)


def test_values_copied_to_the_host_have_the_digest_of_those_summed_in_place(kit, monkeypatch):
  # The way of an accelerator, taken on CPU devices: copy first, sum on another thread later.
  arrays = dict(enumerate(jax.tree.leaves(kit.place(kit.host_state(), "2x2x2"))))
  in_place = digest.start(arrays)()
  monkeypatch.setattr(digest, "_on_cpu", lambda data: False)
  assert digest.start(arrays)() == in_place


def test_pieces_in_any_order_and_of_any_shape_add_up_to_the_whole():
  values = np.random.default_rng(1).standard_normal((30, 50)).astype(np.float32)
  cuts = [(slice(0, 7), slice(13, 50)), (slice(7, 30), slice(0, 50)), (slice(0, 7), slice(0, 13))]
  parts = [digest.part_of_sum(values.shape, [(cut, values[cut])]) for cut in cuts]
  assert sum(parts) % 2**64 == whole(values)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8])
def test_every_single_flipped_bit_changes_the_digest(dtype):
  values = np.random.default_rng(2).integers(0, 100, (5, 9)).astype(dtype)
  expected = whole(values)
  for bit in range(values.nbytes * 8):
    flipped = bytearray(values.tobytes())
    flipped[bit // 8] ^= 1 << bit % 8
    assert whole(np.frombuffer(bytes(flipped), dtype).reshape(values.shape)) != expected


def test_moved_rows_swapped_elements_and_turned_signs_change_the_digest():
  values = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32)
  swapped = values.copy()
  swapped[0, 0], swapped[0, 1] = values[0, 1], values[0, 0]
  changed = [values[::-1], values[:, ::-1], values.T, -values, np.roll(values, 1, axis=0), swapped, np.zeros_like(values)]
  assert len({whole(values), *(whole(np.ascontiguousarray(other)) for other in changed)}) == 8


def test_the_digest_of_a_small_array_is_the_sum_that_the_module_describes():
  values = np.asarray([[1, 2], [3, 4]], np.int16)
  (row,) = digest._make_keys((), (), 1, digest._ROW_SALT).tolist()
  columns = digest._make_keys((2, 2), ((0, 2), (0, 2)), 1, digest._COLUMN_SALT).tolist()
  assert whole(values) == sum(word * row * key for word, key in zip([1, 2, 3, 4], columns, strict=True)) % 2**64


def test_the_digest_of_json_ignores_key_order_and_sees_values():
  assert digest.json_digest({"a": 1, "b": [2]}) == digest.json_digest({"b": [2], "a": 1})
  assert digest.json_digest({"a": 1}) != digest.json_digest({"a": 1.0})
