"""Names of topologies, and the mesh over slices that were only described."""

from __future__ import annotations

import pytest

from maxagent.errors import PlanError
from maxagent.plan.chips import CHIPS, boxes, topology


def test_a_name_says_how_many_chips_and_devices_there_are():
  assert topology("v5p:16x16x16").chips == 4096
  assert topology("v5p:4x4x4", slices=4).chips == 256
  assert topology("tpu7x:2x2x1").devices == 8  # two for each chip


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v9z:2x2", "no known chip; known are v4:4x4x4, v5e:4x4, v5p:4x4x4, v6e:4x4, tpu7x:4x4x4"),
    ("v5p:4x4", "no shape of 3 dimensions; expected one such as v5p:4x4x4"),
    ("v5e:4x0", "no shape of 2 dimensions"),
    ("v5p", "no shape of 3 dimensions"),
  ],
)
def test_an_unknown_name_is_answered_with_those_that_are_known(name, message):
  with pytest.raises(PlanError, match=message):
    topology(name)


def test_slices_are_asked_for_from_small_to_large():
  assert [one.name for one in boxes("v5p", 16)] == ["v5p:1x1x1", "v5p:2x2x1", "v5p:2x2x2", "v5p:2x2x4"]
  for kind in CHIPS:
    sizes = [one.chips for one in boxes(kind, 4096)]
    assert sizes == [1, *(2**power for power in range(2, 13))]


def test_every_figure_of_a_chip_names_its_source():
  assert all(chip.source.startswith("https://") for chip in CHIPS.values())
