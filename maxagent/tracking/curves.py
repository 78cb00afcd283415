"""From the records of a run to the charts of its report. Only names that occur are drawn; what is no number is skipped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maxagent.tracking.charts import Chart, Series
from maxagent.tracking.palette import ROLE_COLOURS, role_colour, series_colour


class Curves:
  """The records of one run, looked at by metric name."""

  def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
    self._records = [r for r in records if "event" not in r]
    self.names = sorted({name for record in self._records for name in record})

  @property
  def last_step(self) -> int | None:
    """The step of the last record; None when there is none."""
    return next((r["step"] for r in reversed(self._records)), None)

  def points(self, name: str) -> tuple[list[float], list[float | None]]:
    """Tokens and values of the records that hold the metric; a value that was not finite is None."""
    holding = [r for r in self._records if name in r and _is_number(r.get("tokens"))]
    numeric = [r for r in holding if r[name] is None or _is_number(r[name])]
    return [float(r["tokens"]) for r in numeric], [r[name] for r in numeric]

  def last(self, name: str) -> float | None:
    """The metric's last value that is a number."""
    return next((v for v in reversed(self.points(name)[1]) if v is not None), None)

  def parts(self, prefix: str) -> list[str]:
    """What follows `prefix` in metric names: parts("mixture/asked/") -> ["trace", "web"]."""
    return [n[len(prefix) :] for n in self.names if n.startswith(prefix) and len(n) > len(prefix)]

  def families(self) -> list[str]:
    """The environments that were played: names of the form eval/<family>/success or recovery."""
    cut = [n.split("/") for n in self.names]
    return sorted({p[1] for p in cut if len(p) == 3 and p[0] == "eval" and p[2] in ("success", "recovery")})

  def series(self, name: str, label: str, colour: str, *, band: bool = False, dashed: bool = False) -> Series:
    """A metric as a line, with `<name>_low` and `<name>_high` around it when `band` is on and they are complete."""
    tokens, values = self.points(name)
    low, high = (self.points(name + end)[1] if band else [] for end in ("_low", "_high"))
    complete = bool(values) and len(low) == len(high) == len(values)
    return Series(
      label=label, colour=colour, tokens=tokens, values=values, dashed=dashed,
      low=low if complete else None, high=high if complete else None,
    )  # fmt: skip


def charts(curves: Curves) -> list[Chart]:
  """Every chart of the report, in its order; one without a single value is left out."""
  made = [
    *_agent_charts(curves),
    _losses(curves, "Training loss by source", "train/loss/source/", total="train/loss"),
    _losses(curves, "Held-out loss by source", "eval/loss/source/"),
    _roles(curves, "Training loss by role", "train/loss/role/"),
    _roles(curves, "Held-out loss by role", "eval/loss/role/"),
    _mixture(curves),
    _single(curves, "Learning rate", "train/learning_rate", scale="zero"),
    _single(curves, "Gradient norm", "train/grad_norm", note="Before clipping.", smooth=True),
    _single(curves, "Tokens per second", "train/tokens_per_second", scale="zero", smooth=True),
  ]
  return [c for c in made if any(s.last is not None for s in c.series)]


def source_colours(curves: Curves) -> dict[str, str]:
  """One colour per source, the same in every chart."""
  prefixes = ("train/loss/source/", "eval/loss/source/", "mixture/asked/", "mixture/realised/")
  names = sorted({part for prefix in prefixes for part in curves.parts(prefix)})
  return {name: series_colour(n) for n, name in enumerate(names)}


def _agent_charts(curves: Curves) -> Iterable[Chart]:
  kinds = (
    ("success", "Success", "Held-out episodes solved. Band: confidence interval."),
    ("recovery", "Recovery", "Solved after a wrong action was forced and executed. Band: confidence interval."),
    ("repeated_error", "Repeated errors", "Failed calls made again unchanged."),
  )
  for metric, title, note in kinds:
    families = curves.families()
    lines = [curves.series(f"eval/{f}/{metric}", f, series_colour(n), band=True) for n, f in enumerate(families)]
    if len(families) != 1:
      lines.append(curves.series(f"eval/{metric}", "all", "currentColor", dashed=bool(families)))
    yield Chart(title=title, series=_drawn(lines), note=note, scale="share")


def _losses(curves: Curves, title: str, prefix: str, *, total: str | None = None) -> Chart:
  lines = [curves.series(prefix + name, name, colour) for name, colour in source_colours(curves).items()]
  if total:
    lines.append(curves.series(total, "objective", "currentColor"))
  note = "Nats per token, unweighted; the objective is weighted." if total else "Nats per token, unweighted."
  return Chart(title=title, series=_drawn(lines), note=note, smooth=total is not None)


def _roles(curves: Curves, title: str, prefix: str) -> Chart:
  found = curves.parts(prefix)
  names = [r for r in ROLE_COLOURS if r in found] + [r for r in found if r not in ROLE_COLOURS]
  lines = [curves.series(prefix + r, r, role_colour(r) if r in ROLE_COLOURS else "currentColor") for r in names]
  return Chart(title=title, series=_drawn(lines), note="Nats per token, unweighted.", smooth=prefix.startswith("train/"))


def _mixture(curves: Curves) -> Chart:
  lines = []
  for name, colour in source_colours(curves).items():
    lines.append(curves.series(f"mixture/realised/{name}", name, colour))
    lines.append(curves.series(f"mixture/asked/{name}", f"{name}, asked", colour, dashed=True))
  return Chart(title="Mixture", series=_drawn(lines), note="Share of content tokens; dashed: asked.", scale="percent")


def _single(curves: Curves, title: str, name: str, *, scale: str = "auto", note: str = "", smooth: bool = False) -> Chart:
  line = curves.series(name, "last", series_colour(0))
  return Chart(title=title, series=_drawn([line]), note=note, scale=scale, smooth=smooth)


def _drawn(lines: Iterable[Series]) -> tuple[Series, ...]:
  return tuple(line for line in lines if line.last is not None)


def _is_number(value: object) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)
