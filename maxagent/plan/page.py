"""A plan as one page, without a script and without a request to anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maxagent.plan import tables
from maxagent.plan.estimate import Plan
from maxagent.tracking import page
from maxagent.tracking.writers import replace_file

_TEMPLATE = "plan.html.j2"


def write_page(plan: Plan, path: Path, *, others: Sequence[Plan] = ()) -> Path:
  """Writes the page, whole or not at all; `others` are what a search compared, the shown one among them."""
  shown = tables.tables(plan)
  compared = [tables.comparison(others)] if others else []
  context = {
    "title": tables.title(plan),
    "fits": plan.memory.fits,
    "verdict": plan.memory.verdict(),
    "tiles": tables.tiles(plan),
    "tables": [*compared, *shown],
    "checkpoints": tables.checkpoints(plan),
    "assumptions": plan.assumptions,
    "versions": ", ".join(f"{name} {version}" for name, version in plan.versions.items()),
  }
  replace_file(path, page.render(_TEMPLATE, context))
  return path
