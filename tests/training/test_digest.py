import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxagent.config import Config, Mesh
from maxagent.data.batch import FIELD_DTYPES, Batch
from maxagent.parallel import Layout, make_mesh
from maxagent.parallel.processes import to_global
from maxagent.training.digest import added, batch_digest


def _digest(batch: Batch, step: int = 3, layout: Layout | None = None) -> list[int]:
  return jax.jit(batch_digest)(to_global(batch, layout or Layout()), jnp.int32(step)).tolist()


def _oracle(batch: Batch, step: int) -> list[int]:
  """With Python's own integers, one place after the other."""

  def mixed(x: int) -> int:
    x = ((x ^ x >> 16) * 0x85EBCA6B) % 2**32
    x = ((x ^ x >> 13) * 0xC2B2AE35) % 2**32
    return x ^ x >> 16

  fields = [np.asarray(getattr(batch, name)).ravel().tolist() for name in FIELD_DTYPES]
  lanes = []
  for salt in (0x9E3779B9, 0x7F4A7C15):
    total = 0
    for place, values in enumerate(zip(*fields, strict=True)):
      x = mixed(place ^ mixed((step + salt) % 2**32))
      for value in values:
        x = mixed(x ^ value)
      total += x
    lanes.append(total % 2**32)
  return lanes


def test_the_digest_of_a_batch_is_the_one_that_python_integers_give(tiny_config: Config, random_batch: Callable[..., Batch]):
  batch = random_batch(tiny_config)
  assert _digest(batch) == _oracle(batch, 3)


@pytest.mark.parametrize("mesh", [Mesh(fsdp=2), Mesh(data=1, fsdp=2, context=4), Mesh(context=2, tensor=2)])
def test_the_digest_is_the_same_on_every_mesh(tiny_config: Config, random_batch: Callable[..., Batch], mesh: Mesh):
  batch = random_batch(tiny_config)
  assert _digest(batch, layout=Layout(make_mesh(mesh))) == _digest(batch)


@pytest.mark.parametrize("name", list(FIELD_DTYPES))
def test_one_changed_value_of_any_field_changes_both_lanes(tiny_config: Config, random_batch: Callable[..., Batch], name: str):
  batch = random_batch(tiny_config)
  changed = getattr(batch, name).copy()
  changed[5, 7] ^= 1
  lanes, others = _digest(batch), _digest(dataclasses.replace(batch, **{name: changed}))
  assert lanes[0] != others[0] and lanes[1] != others[1]


def test_rows_that_change_places_and_steps_that_change_places_change_the_digest(
  tiny_config: Config, random_batch: Callable[..., Batch]
):
  one, two = random_batch(tiny_config), random_batch(tiny_config, seed=1)
  swapped = jax.tree.map(lambda field: np.ascontiguousarray(field[[1, 0, *range(2, 8)]]), one)
  assert _digest(swapped) != _digest(one)
  in_order, in_turn = ([_digest(first, 0), _digest(second, 1)] for first, second in ((one, two), (two, one)))
  assert added(added(0, in_order[0]), in_order[1]) != added(added(0, in_turn[0]), in_turn[1])


def test_lanes_of_a_running_digest_wrap_around_apart():
  assert added(0xFFFF_FFFF, [1, 2]) == 2 << 32
  assert added(0xFFFF_FFFF_0000_0005, [1, 1]) == 6
