"""Warm-up, stable, decay. Source: MiniCPM, arXiv 2404.06395, section 4."""

from __future__ import annotations

import optax

from maxagent.config import Schedule


def factor(schedule: Schedule, steps: int) -> optax.Schedule:
  """A function of the step that multiplies every peak learning rate: up to 1, 1, down to `final_factor` at `steps`."""
  warmup, decay = schedule.warmup_steps, schedule.decay_steps
  parts = [optax.linear_schedule(1 / warmup, 1.0, warmup - 1)] if warmup > 1 else []
  parts += [optax.constant_schedule(1.0), optax.linear_schedule(1.0, schedule.final_factor, max(1, decay))]
  boundaries = [warmup] * (len(parts) - 2) + [steps - decay]
  return optax.join_schedules(parts, boundaries)


def scaled(peak: float, schedule: Schedule, steps: int) -> optax.Schedule:
  """The learning rate by step for one peak."""
  shape = factor(schedule, steps)
  return lambda step: peak * shape(step)
