"""How much each token's loss counts, by its role, status and flags.

The table of a phase is indexed inside jit, so one shard set serves every masking ablation. B batch, T length, R roles,
S statuses.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float, Int, UInt8

from maxagent.config import Objective
from maxagent.traces.schema import Flag, Role, Status

# What a phase does not name weighs 1. Context that the harness writes is not the model's to say and counts little or nothing.
PHASE_WEIGHTS: dict[str, dict[str, float]] = {
  "pretrain": {"system": 0.1, "tools": 0.1, "goal": 0.1, "user": 0.1},
  "midtrain": {"system": 0, "tools": 0, "goal": 0, "user": 0, "call.err": 0, "args.err": 0, "obs": 0.1, "marker": 0.1},
}


def weight_table(objective: Objective, step: int | Int[Array, ""] = 0) -> Float[Array, "R S"]:
  """The weights of every (role, status) of the objective's phase, with its overrides and what its schedule says at `step`.

  A key is a role ("obs") or a role and a status ("call.err"), and the latter wins. Between the points of a schedule a weight is
  linear in steps, and constant before the first and after the last.
  """
  weights: dict[str, float | Array] = {**PHASE_WEIGHTS[objective.phase], **dict(objective.overrides)}
  for key, points in objective.schedule:
    weights[key] = jnp.interp(step, *(jnp.asarray(axis, jnp.float32) for axis in zip(*points, strict=True)))
  table = jnp.ones((len(Role), len(Status)), jnp.float32)
  for key in sorted(weights, key=lambda k: "." in k):
    role, _, status = key.upper().partition(".")
    table = table.at[Role[role], Status[status] if status else slice(None)].set(weights[key])
  return table.at[Role.PAD].set(0)


def supervised_table(objective: Objective) -> npt.NDArray[np.bool_]:
  """[R, S] on the host: which roles and statuses weigh something at any step, for `data.shares_of`."""
  steps = {0, *(step for _, points in objective.schedule for step, _ in points)}
  return np.any([np.asarray(weight_table(objective, step)) > 0 for step in steps], axis=0)


def token_weights(
  roles: UInt8[Array, "B T"], statuses: UInt8[Array, "B T"], flags: UInt8[Array, "B T"], table: Float[Array, "R S"]
) -> Float[Array, "B T"]:
  """The weight of each target.

  A filled hole weighs 1 whatever its role. A muted token weighs 0 whatever else it is; so does an added one, unless it is a
  decision: the turning back from a fake weighs as its role does.

      roles     [WEB, TOOLS, CALL, CALL, CALL,  BACK,           PAD]
      statuses  [NA,  NA,    OK,   ERR,  OK,    NA,             NA]
      flags     [0,   0,     0,    0,    ADDED, ADDED|DECISION, 0]
      pretrain  [1,   0.1,   1,    1,    0,     1,              0]
      midtrain  [1,   0,     1,    0,    0,     1,              0]
  """
  weights_BT = table[roles, statuses]
  weights_BT = jnp.where(flags & Flag.HOLE, 1.0, weights_BT)
  fake_BT = flags & (Flag.ADDED | Flag.DECISION) == Flag.ADDED
  return jnp.where(fake_BT | (flags & Flag.MUTED != 0) | (roles == Role.PAD), 0.0, weights_BT)
