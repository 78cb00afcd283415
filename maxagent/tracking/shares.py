"""What a run is asked to read and what it reads: shares of each source over its schedule, in content tokens and in supervised.

A share is of the tokens between two readings, not of all before: so a phase of the schedule is seen where it begins.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from maxagent.tracking.charts import Chart, Series, compact
from maxagent.tracking.palette import series_colour

Phases = Sequence[tuple[float, Mapping[str, float]]]  # (first content token, share of each source)


@dataclasses.dataclass(frozen=True)
class Reading:
  """Content tokens of each source that a run has read up to a step."""

  step: int
  tokens: Mapping[str, float]

  @property
  def total(self) -> float:
    """Of all sources."""
    return sum(self.tokens.values())


def recorded(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Reading]:
  """The readings of a run's metrics: records that say which share of its content tokens was each source's."""
  keys = [f"mixture/realised/{name}" for name in names]
  readings = []
  for record in records:
    if all(isinstance(record.get(key), int | float) for key in [*keys, "mixture/fill", "mixture/added", "tokens"]):
      content = record["tokens"] * (record["mixture/fill"] - record["mixture/added"])
      readings.append(Reading(record["step"], {name: record[key] * content for name, key in zip(names, keys, strict=True)}))
  return readings


def said(phases: Phases, asked_of: str) -> list[str]:
  """The asked shares in words, a phase a line: `Asked of content tokens from 0 on: trace 10.0%, web 90.0%.`"""
  lines = [", ".join(f"{name} {share:.1%}" for name, share in shares.items()) for _, shares in phases]
  if len(lines) == 1:
    return [f"Asked of {asked_of} tokens: {lines[0]}."]
  return [
    f"Asked of {asked_of} tokens from {compact(start)} on: {line}." for (start, _), line in zip(phases, lines, strict=True)
  ]


def share_charts(
  phases: Phases, readings: Sequence[Reading], supervised: Sequence[Mapping[str, float]], *, steps: int, asked_of: str
) -> list[Chart]:
  """Asked against realised shares of content tokens, and the shares of supervised tokens.

  Args:
    phases: the asked shares.
    readings: what was read, at growing steps; one at least.
    supervised: for each reading, which part of each source's tokens since the one before is supervised.
    steps: of the whole run, to know how far the schedule will be followed.
    asked_of: content | supervised, what the asked shares are of.
  """
  names = list(phases[0][1])
  end = readings[-1].total * steps / readings[-1].step
  asked = [_asked(name, phases, end, colour=series_colour(n)) for n, name in enumerate(names)]
  windows = list(itertools.pairwise([Reading(0, dict.fromkeys(names, 0.0)), *readings]))
  middles = [(before.total + after.total) / 2 for before, after in windows]
  read = [{name: after.tokens[name] - before.tokens[name] for name in names} for before, after in windows]
  learned = [{name: n * part[name] for name, n in row.items()} for row, part in zip(read, supervised, strict=True)]
  return [
    Chart(
      title=title, note=f"Share of each source{'; dashed: asked' if asked_of == of else ''}.{note}", scale="share",
      series=tuple([*_lines(names, middles, rows), *(asked if asked_of == of else [])]),
    )
    for of, title, note, rows in (
      ("content", "Content tokens", "", read), ("supervised", "Supervised tokens", " Their loss weighs something.", learned),
    )
  ]  # fmt: skip


def _lines(names: Sequence[str], middles: Sequence[float], rows: Sequence[Mapping[str, float]]) -> list[Series]:
  sums = [sum(row.values()) for row in rows]
  return [
    Series(
      label=name, colour=series_colour(n), tokens=middles,
      values=[row[name] / whole if whole else None for row, whole in zip(rows, sums, strict=True)],
    )
    for n, name in enumerate(names)
  ]  # fmt: skip


def _asked(name: str, phases: Phases, end: float, *, colour: str) -> Series:
  """A line with a step where a phase begins; phases that the run does not reach are left out."""
  reached = [(start, shares[name]) for start, shares in phases if start < end]
  stops = [start for start, _ in reached[1:]] + [end]
  points = [point for (start, share), stop in zip(reached, stops, strict=True) for point in ((start, share), (stop, share))]
  return Series(
    label=f"{name}, asked", colour=colour, dashed=True,
    tokens=[at for at, _ in points], values=[share for _, share in points],
  )  # fmt: skip
