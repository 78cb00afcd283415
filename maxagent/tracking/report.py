"""WORKDIR/report.html: one page that shows a run, without a script and without a request to anywhere."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maxagent.errors import ConfigError
from maxagent.tracking import charts, curves, page, palette, turns
from maxagent.tracking.ledger import IDLE, LEDGER_FILE, OUTER_FILE, Ledger
from maxagent.tracking.writers import METRICS_FILE, read_metrics, replace_file

REPORT_FILE = "report.html"
_TEMPLATE = "report.html.j2"
_TABLE_ROLES = tuple(role for role in palette.ROLE_COLOURS if role not in ("web", "marker", "pad"))


@dataclasses.dataclass(frozen=True)
class _Rate:
  """A rate with its interval, as text; an empty interval was not recorded."""

  value: str
  interval: str


def write_report(workdir: str | os.PathLike[str]) -> Path:
  """Writes report.html from what lies in a run's folder, whole or not at all; returns its path.

  metrics.jsonl must be there; config.json, ledger.json, phases.jsonl and episodes.jsonl are shown where they are.

  Raises:
    DataError: no metrics file, or a line in one of the files that cannot be read; the message names it.
    ConfigError: config.json is not JSON.
  """
  folder = Path(workdir)
  path = folder / REPORT_FILE
  replace_file(path, page.render(_TEMPLATE, _context(folder)))
  return path


def _context(folder: Path) -> dict[str, Any]:
  records = read_metrics(folder / METRICS_FILE)
  run = curves.Curves(records)
  config = _read_config(folder / "config.json")
  ledger = _ledger(folder)
  return {
    "name": str(config.get("name") or folder.resolve().name),
    "summary": _summary(run, config, folder / METRICS_FILE),
    "tiles": _tiles(run, ledger),
    "families": _families(run),
    "cards": page.cards(curves.charts(run)),
    "mixture": _mixture(run),
    "fill": None if (fill := run.last("mixture/fill")) is None else f"{fill:.1%}",
    "ledger": _ledger_rows(ledger),
    "config_parts": _config_parts(config),
    "episodes": _episodes(folder / turns.EPISODES_FILE),
    "roles": _TABLE_ROLES,
  }


def _read_config(path: Path) -> dict[str, Any]:
  if not path.exists():
    return {}
  try:
    config = json.loads(path.read_bytes())
  except ValueError as error:
    raise ConfigError(f"{path} is not JSON ({error}); expected the configuration that the run was started with.") from error
  return config if isinstance(config, dict) else {}


def _ledger(folder: Path) -> Ledger | None:
  if not (folder / LEDGER_FILE).exists() and not (folder / OUTER_FILE).exists():
    return None
  return Ledger.load(folder).with_outer(folder)


def _summary(run: curves.Curves, config: Mapping[str, Any], metrics: Path) -> dict[str, str]:
  step = run.last_step
  planned = (config.get("training") or {}).get("steps")
  steps = (
    "no step recorded yet" if step is None else f"step {step:,}" + (f" of {planned:,}" if isinstance(planned, int) else "")
  )
  return {"steps": steps, "written": time.strftime("%Y-%m-%d %H:%M", time.localtime(metrics.stat().st_mtime))}


def _tiles(run: curves.Curves, ledger: Ledger | None) -> list[dict[str, str]]:
  success, recovery = (_overall(run, kind) for kind in ("success", "recovery"))
  tokens, loss = run.last("tokens"), run.last("train/loss")
  seconds = run.last("seconds")
  wall = sum(ledger.totals().values()) if ledger else seconds
  trained = "" if ledger is None or seconds is None else f"{duration(seconds)} in the run"
  return [
    {"label": "Success", "value": success.value, "detail": success.interval},
    {"label": "Recovery", "value": recovery.value, "detail": recovery.interval},
    {"label": "Training loss", "value": "–" if loss is None else f"{loss:.3f}", "detail": "objective, nats per token"},
    {"label": "Tokens", "value": "–" if tokens is None else charts.compact(tokens, digits=3), "detail": _per_second(run)},
    {"label": "Time", "value": "–" if wall is None else duration(wall), "detail": trained},
  ]


def _per_second(run: curves.Curves) -> str:
  rates = sorted(v for v in run.points("train/tokens_per_second")[1] if v is not None)
  return f"{charts.compact(rates[len(rates) // 2], digits=3)} per second, median" if rates else ""


def _overall(run: curves.Curves, kind: str) -> _Rate:
  """The rate over all families; a run with one family has that family's."""
  families = run.families()
  name = f"eval/{families[0]}/{kind}" if len(families) == 1 else f"eval/{kind}"
  return _rate(run, name, missing="not measured yet")


def _rate(run: curves.Curves, name: str, *, missing: str = "") -> _Rate:
  value, low, high = (run.last(name + end) for end in ("", "_low", "_high"))
  if value is None:
    return _Rate("–", missing)
  return _Rate(f"{value:.1%}", "" if low is None or high is None else f"{100 * low:.1f} – {high:.1%}")


def _families(run: curves.Curves) -> list[dict[str, Any]]:
  kinds = ("success", "recovery", "repeated_error")
  return [
    {"name": f, "rates": [_rate(run, f"eval/{f}/{kind}") for kind in kinds], "others": _others(run, f"eval/{f}/", kinds)}
    for f in run.families()
  ]


def _others(run: curves.Curves, prefix: str, kinds: Sequence[str]) -> str:
  """Whatever else was measured of a family, as one line; a metric with bounds is a rate."""
  parts = run.parts(prefix)
  shown = []
  for part in parts:
    value = run.last(prefix + part)
    if part not in kinds and not part.endswith(("_low", "_high")) and value is not None:
      number = f"{value:.1%}" if f"{part}_low" in parts else charts.compact(value, digits=3)
      shown.append(f"{part.replace('_', ' ')} {number}")
  return " · ".join(shown)


def _mixture(run: curves.Curves) -> list[dict[str, str]]:
  colours = curves.source_colours(run)
  rows = []
  for name in run.parts("mixture/realised/"):
    asked, realised = run.last(f"mixture/asked/{name}"), run.last(f"mixture/realised/{name}")
    if realised is not None:
      rows.append({
        "name": name,
        "colour": colours[name],
        "quarantined": f"{run.last(f'mixture/quarantined/{name}') or 0:,.0f}",
        "asked": "–" if asked is None else f"{asked:.2%}",
        "realised": f"{realised:.2%}",
        "difference": "–" if asked is None else f"{100 * (realised - asked):+.2f} points",
      })  # fmt: skip
  return rows


def _ledger_rows(ledger: Ledger | None) -> list[dict[str, Any]]:
  if ledger is None:
    return []
  totals = ledger.totals()
  wall = sum(totals.values()) or 1.0
  return [
    {
      "name": name,
      "seconds": f"{seconds:,.1f}",
      "share": f"{seconds / wall:.1%}",
      "width": round(100 * seconds / wall, 3),
      "colour": "var(--idle)" if name == IDLE else palette.series_colour(number),
    }
    for number, (name, seconds) in enumerate(totals.items())
  ]


def _config_parts(config: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The configuration by part, each a list of (key, value); single fields of the top come first, under "run"."""
  single = [(k, v) for k, v in config.items() if not isinstance(v, dict)]
  parts = [("run", single)] + [(k, _flat(v)) for k, v in config.items() if isinstance(v, dict)]
  return [{"name": name, "rows": [(key, _shown(value)) for key, value in rows]} for name, rows in parts if rows]


def _flat(part: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
  rows: list[tuple[str, Any]] = []
  for key, value in part.items():
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
      value = {str(v.get("name", n)): {k: w for k, w in v.items() if k != "name"} for n, v in enumerate(value)}
    if isinstance(value, dict) and value:
      rows += _flat(value, f"{prefix}{key}.")
    else:
      rows.append((prefix + key, value))
  return rows


def _shown(value: Any) -> str:
  if value is None:
    return "off"
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, list):
    return ", ".join(_shown(v) for v in value) or "none"
  return str(value) or "(empty)"


def _episodes(path: Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  return [
    {
      "kind": e.kind,
      "success": e.success,
      "family": e.trace.family,
      "seed": e.trace.env_seed,
      "goal": turns.printable(e.trace.goal or e.trace.id, longest=160),
      "calls": sum(s.role == "call" for s in e.trace.segments),
      "turns": turns.turns(e.trace),
    }
    for e in turns.read_episodes(path)
  ]


def duration(seconds: float) -> str:
  """Seconds as a person says them: 8.2 s, 6 min 12 s, 3 h 05 min."""
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes} min {rest:02d} s"
  return f"{minutes // 60} h {minutes % 60:02d} min"
