import math

import jax.numpy as jnp
import numpy as np
import pytest

from maxagent.config import Objective
from maxagent.config.schema import PHASES, WEIGHT_KEYS
from maxagent.errors import ConfigError
from maxagent.objectives.weights import PHASE_WEIGHTS, supervised_table, token_weights, weight_table
from maxagent.traces.schema import Flag, Role, Status


def _weights(objective: Objective, roles: list[int], statuses: list[int], flags: list[int]) -> np.ndarray:
  row = [jnp.asarray([ids], jnp.uint8) for ids in (roles, statuses, flags)]
  return np.asarray(token_weights(*row, weight_table(objective)))[0]


def test_pretraining_weighs_the_context_little_and_failed_calls_fully():
  roles = [Role.WEB, Role.TOOLS, Role.CALL, Role.CALL, Role.ARGS, Role.OBS, Role.MARKER, Role.PAD]
  statuses = [Status.NA, Status.NA, Status.OK, Status.ERR, Status.ERR, Status.ERR, Status.NA, Status.NA]
  np.testing.assert_allclose(_weights(Objective(), roles, statuses, [0] * 8), [1, 0.1, 1, 1, 1, 1, 1, 0], rtol=1e-6)


def test_mid_training_masks_failed_calls_and_the_context():
  roles = [Role.WEB, Role.TOOLS, Role.CALL, Role.CALL, Role.ARGS, Role.OBS, Role.MARKER, Role.BACK]
  statuses = [Status.NA, Status.NA, Status.OK, Status.ERR, Status.ERR, Status.ERR, Status.NA, Status.NA]
  expected = [1, 0, 1, 0, 0, 0.1, 0.1, 1]
  np.testing.assert_allclose(_weights(Objective(phase="midtrain"), roles, statuses, [0] * 8), expected, rtol=1e-6)


def test_an_override_of_a_status_wins_over_one_of_its_role():
  objective = Objective(overrides=(("call.err", 0.0), ("call", 0.5)))
  weights = _weights(objective, [Role.CALL] * 3, [Status.NA, Status.OK, Status.ERR], [0, 0, 0])
  np.testing.assert_allclose(weights, [0.5, 0.5, 0])


def test_flags_decide_over_roles_and_padding_over_everything():
  roles = [Role.TOOLS, Role.CALL, Role.CALL, Role.CALL, Role.PAD]
  flags = [Flag.HOLE, Flag.MUTED, Flag.ADDED, Flag.HOLE | Flag.MUTED, Flag.HOLE]
  np.testing.assert_allclose(_weights(Objective(), roles, [0] * 5, list(flags)), [1, 0, 0, 0, 0])


def test_of_what_was_added_only_a_decision_weighs_as_its_role_does_and_not_if_it_is_muted():
  roles = [Role.BACK, Role.BACK, Role.OBS, Role.BACK, Role.PAD]
  made = Flag.ADDED | Flag.DECISION
  flags = [Flag.ADDED, made, made, made | Flag.MUTED, made]
  objective = Objective(phase="midtrain", overrides=(("back", 0.5),))
  np.testing.assert_allclose(_weights(objective, roles, [0] * 5, list(flags)), [0, 0.5, 0.1, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("field", ["overrides", "schedule"])
@pytest.mark.parametrize(
  ("key", "said"),
  [
    ("call.error", r"Did you mean 'call\.err'"),
    ("obz", "Did you mean 'obs'"),
    ("pad", "Roles are web, system, tools"),  # padding never counts, so a weight for it would mean nothing
    ("", "Roles are web, system, tools"),
    ("call.", "Did you mean 'call'"),
  ],
)
def test_a_key_that_names_no_role_or_status_is_refused_before_anything_is_built(field: str, key: str, said: str):
  value = 0.0 if field == "overrides" else ((0, 1.0),)
  with pytest.raises(ConfigError, match=rf"objective\.{field} names {key!r}; expected a role or role\.status.*{said}"):
    Objective(**{field: ((key, value),)})


@pytest.mark.parametrize("field", ["overrides", "schedule"])
def test_a_key_that_is_given_twice_is_refused(field: str):
  value = 0.0 if field == "overrides" else ((0, 1.0),)
  with pytest.raises(ConfigError, match=rf"objective\.{field} keys .* expected keys that differ"):
    Objective(**{field: (("obs", value), ("obs", value))})


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
def test_a_weight_is_a_finite_number_not_below_zero(wrong: float):
  for given in ({"overrides": (("obs", wrong),)}, {"schedule": (("obs", ((0, wrong),)),)}, {"z_loss": wrong}):
    with pytest.raises(ConfigError, match="expected a weight of 0 or more"):
      Objective(**given)


@pytest.mark.parametrize("wrong", [-0.1, 0.0, math.nan, math.inf])
def test_further_tokens_are_turned_off_by_their_depth_and_not_by_their_weight(wrong: float):
  with pytest.raises(ConfigError, match=r"objective\.mtp_weight is .*model\.mtp_depth = 0 turns it off"):
    Objective(mtp_weight=wrong)


def test_every_phase_has_a_table_and_every_key_of_it_is_one_that_can_be_overridden():
  assert set(PHASE_WEIGHTS) == set(PHASES)
  for phase, table in PHASE_WEIGHTS.items():
    Objective(phase=phase, overrides=tuple(table.items()))


def test_every_key_sets_its_own_entries_of_the_table():
  for key in WEIGHT_KEYS:
    changed = np.asarray(weight_table(Objective(overrides=((key, 7.0),)))) == 7
    role, _, status = key.upper().partition(".")
    expected = np.zeros_like(changed)
    expected[Role[role], Status[status] if status else slice(None)] = True
    np.testing.assert_array_equal(changed, expected)


def test_a_scheduled_weight_is_linear_between_its_points_and_constant_beyond():
  objective = Objective(overrides=(("obs", 9.0),), schedule=(("obs", ((10, 1.0), (30, 0.2))), ("call.err", ((0, 0.5),))))
  tables = {step: weight_table(objective, step) for step in (0, 10, 20, 25, 99)}
  assert [round(float(tables[step][Role.OBS, Status.OK]), 4) for step in tables] == [1.0, 1.0, 0.6, 0.4, 0.2]
  assert all(
    float(table[Role.CALL, Status.ERR]) == 0.5 and float(table[Role.CALL, Status.OK]) == 1 for table in tables.values()
  )


@pytest.mark.parametrize("points", [(), ((5, 1.0), (5, 0.5)), ((5, 1.0), (2, 0.5)), ((0, -1.0),)])
def test_a_schedule_that_cannot_be_followed_is_refused(points: tuple[tuple[int, float], ...]):
  with pytest.raises(ConfigError, match=r"objective\.schedule obs"):
    Objective(schedule=(("obs", points),))


def test_what_weighs_something_at_any_step_counts_as_supervised():
  schedule = (("obs", ((100, 0.0), (200, 0.3), (300, 0.0))), ("say", ((0, 0.0),)))
  table = supervised_table(Objective(phase="midtrain", schedule=schedule, overrides=(("call.err", 0.5),)))
  assert table[Role.OBS].all() and table[Role.CALL, Status.ERR] and not table[Role.ARGS, Status.ERR]
  assert not table[[Role.SYSTEM, Role.TOOLS, Role.GOAL, Role.USER, Role.SAY, Role.PAD]].any()
