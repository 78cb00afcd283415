"""A plan in the terminal: one screen, the verdict first."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from maxagent.plan.estimate import Plan
from maxagent.plan.tables import Table, checkpoints, tables, title

_BAR = 16  # characters of a whole


def view(plan: Plan) -> Iterator[RenderableType]:
  """What to print, piece by piece."""
  yield Text(title(plan), style="bold")
  yield Text(plan.memory.verdict(), style="bold green" if plan.memory.fits else "bold red")
  for table in tables(plan):
    yield Text()
    yield from table_view(table)
  yield Text()
  yield Text.assemble(("Checkpoints  ", "bold"), checkpoints(plan))
  yield Text()
  yield from (Text(f"- {line}", style="dim") for line in plan.assumptions)
  seconds = "" if plan.compile_seconds is None else f"compiled in {plan.compile_seconds:.0f} s, "
  made_by = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
  yield Text(f"{seconds}{plan.compile_bytes / 2**30:.1f} GiB of this machine; {made_by}", style="dim")


def table_view(table: Table) -> Iterator[RenderableType]:
  """One table under its title."""
  yield Text.assemble((table.title, "bold"), ("  " + table.note, "dim"))
  made = RichTable(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
  barred = any(row.share is not None for row in table.rows)
  for column, left in zip(table.columns, table.of_text, strict=True):
    made.add_column(column, justify="left" if left else "right", no_wrap=column != "settings")
  if barred:
    made.add_column("")
  for row in table.rows:
    bar = [_bar(row.share or 0.0)] if barred else []
    made.add_row(*(Text(cell) for cell in row.cells), *bar)
  yield made


def _bar(share: float) -> Text:
  full = min(_BAR, round(share * _BAR))
  return Text("━" * full, style="red" if share > 1 else "cyan") + Text("━" * (_BAR - full), style="bright_black")
