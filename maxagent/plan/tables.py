"""A plan as tables of text: what the screen prints and the page shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from maxagent.plan.estimate import Pace, Plan
from maxagent.plan.memory import size_text
from maxagent.plan.roofline import SANE_MFU
from maxagent.plan.search import settings
from maxagent.tracking.report import duration


@dataclasses.dataclass(frozen=True)
class Row:
  """Cells of text, and for some tables the part of the whole that the row is."""

  cells: tuple[str, ...]
  share: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
  """The first column is a name, the others are figures."""

  title: str
  note: str
  columns: tuple[str, ...]
  rows: tuple[Row, ...]

  @property
  def of_text(self) -> tuple[bool, ...]:
    """Which columns hold words, and so begin at the left."""
    return tuple(not number or column in _COLUMNS_OF_TEXT for number, column in enumerate(self.columns))


_COLUMNS_OF_TEXT = ("along", "over", "assumed", "memory", "bound")


def title(plan: Plan) -> str:
  """What is planned, where, and how it is cut."""
  axes = " ".join(f"{name}={size}" for name, size in plan.mesh.items() if size > 1) or "one device"
  return f"{plan.config.name} on {plan.topology}, {axes}"


def tables(plan: Plan) -> list[Table]:
  """Everything, in the order of a reader's questions."""
  return [_run(plan), _memory(plan), _step(plan), _operations(plan), *([_traffic(plan)] if plan.traffic else [])]


def tiles(plan: Plan) -> list[dict[str, str]]:
  """The headline, most wanted first."""
  memory, usual = plan.memory, plan.usual
  return [
    {
      "label": "Memory",
      "value": "fits" if memory.fits else "does not fit",
      "detail": f"{size_text(memory.needed)} of {size_text(memory.hbm)}, {memory.verdict().split(' ', 2)[-1]}"
      if memory.fits
      else f"{size_text(memory.needed)} of {size_text(memory.hbm)}",
    },
    {"label": "Step", "value": _seconds(plan.best.step_seconds), "detail": f"at best, bound by {plan.roofline.bound}"},
    {"label": "MFU", "value": f"{plan.best.mfu:.0%}", "detail": "at most"},
    {"label": "Tokens", "value": _short(plan.best.tokens_per_second), "detail": "per second, at most"},
    {
      "label": "Run",
      "value": f"{usual.days:,.1f} days",
      "detail": f"at {usual.mfu:.0%} MFU; {_short(usual.chip_hours)} chip-hours",
    },
  ]


def comparison(plans: Sequence[Plan]) -> Table:
  """What a search found, best first."""
  rows = tuple(
    Row((
      settings(plan.config),
      plan.memory.verdict(),
      _seconds(plan.roofline.best_seconds),
      _seconds(plan.roofline.worst_seconds),
      plan.roofline.bound,
    ))
    for plan in plans
  )  # fmt: skip
  columns = ("settings", "memory", "step at best", "nothing overlapped", "bound")
  return Table("Best settings", "Those that fit first, then by the bound.", columns, rows)


def checkpoints(plan: Plan) -> str:
  """How large a checkpoint is and how often one is written."""
  every, keep = plan.config.checkpoint.every_steps, plan.config.checkpoint.keep
  seconds = plan.usual.step_seconds * every
  each, total, mfu = size_text(plan.state_bytes), size_text(plan.state_bytes * keep), plan.usual.mfu
  return (
    f"{each} each, every {every:,} steps (about {duration(seconds)} at {mfu:.0%} MFU); {total} for the {keep} that are kept"
  )


def _run(plan: Plan) -> Table:
  steps, tokens = plan.config.training.steps, plan.config.tokens_per_step
  budget = f"{_short(steps * tokens)} tokens: {steps:,} steps of {tokens:,}."
  note = f"{budget} No run exceeds the bound; PaLM reached 46% (arXiv 2204.02311, table 3)."
  paces = [("bound", plan.best), *(("", plan.at(mfu)) for mfu in reversed(SANE_MFU) if mfu < plan.best.mfu)]
  columns = ("MFU", "step", "tokens/s", "days", "chip-hours")
  return Table("The run", note, columns, tuple(Row(_pace(name, pace)) for name, pace in paces))


def _pace(name: str, pace: Pace) -> tuple[str, ...]:
  return (
    f"{pace.mfu:.0%} {name}".strip(), _seconds(pace.step_seconds), f"{pace.tokens_per_second:,.0f}", f"{pace.days:,.2f}",
    f"{pace.chip_hours:,.0f}",
  )  # fmt: skip


def _memory(plan: Plan) -> Table:
  memory = plan.memory
  parts = {
    "parameters": memory.parameters,
    "optimizer": memory.optimizer,
    "batch": memory.batch,
    "padding": memory.padding,
    "activations kept": memory.activations,
    "temporary": memory.temp,
    "code": memory.code,
  }
  rows = [Row((name, size_text(size), f"{size / memory.hbm:.1%}"), size / memory.hbm) for name, size in parts.items()]
  whole = Row(("together", size_text(memory.needed), f"{memory.needed / memory.hbm:.1%}"), memory.needed / memory.hbm)
  note = f"Of the {size_text(memory.hbm)} that a program may have on one device. {memory.verdict()}."
  return Table("Memory", note, ("part", "bytes", "of HBM"), (*rows, whole))


_SPENT_ON = {
  "compute": "products at the chip's peak",
  "HBM": "its memory's bandwidth, counted",
  "ICI": "links inside a slice",
  "DCN": "network between slices",
}


def _step(plan: Plan) -> Table:
  roof = plan.roofline
  best, worst = _seconds(roof.best_seconds), _seconds(roof.worst_seconds)
  note = f"Bound by {roof.bound}: {best} with everything overlapped, {worst} end to end."
  rows = tuple(Row((name, _seconds(s), _SPENT_ON[name]), s / roof.best_seconds) for name, s in roof.terms.items())
  return Table("A step", note, ("spent on", "at best", "assumed"), rows)


def _operations(plan: Plan) -> Table:
  flops, tokens = plan.flops, plan.config.tokens_per_step / plan.topology.devices
  rows = [
    ("model, forward and backward", flops.model * tokens, f"{flops.model:.3g} a token"),
    ("computed again", flops.recomputed * tokens, f"{flops.recomputed:.3g} a token"),
    ("optimizer, were it shared evenly", flops.optimizer / plan.topology.devices, ""),
  ]
  if plan.products is not None:
    kernels = flops.kernels * tokens if plan.config.model.attention == "pallas" else 0.0
    done = plan.products + kernels
    rows.append(("compiled program", done, f"{done / (flops.model * tokens):.2f} x the model's"))
  made = tuple(Row((name, _short(count), detail)) for name, count, detail in rows)
  note = f"{_short(plan.parameters)} parameters. Counted from the config; XLA's own count takes a loop's body once."
  return Table("Operations of one device in a step", note, ("", "operations", ""), made)


def _traffic(plan: Plan) -> Table:
  slowest = plan.traffic[0].seconds
  rows = tuple(
    Row(
      (one.kind, one.axes, one.network, f"{one.times:,.0f}", size_text(one.sent_bytes), _seconds(one.seconds)),
      one.seconds / slowest,
    )
    for one in plan.traffic
  )
  columns = ("collective", "along", "over", "times", "sent", "at best")
  return Table("Collectives of one device in a step", "Of the compiled program, loops multiplied.", columns, rows)


def _seconds(seconds: float) -> str:
  if seconds >= 10:
    return f"{seconds:,.1f} s"
  for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
    if seconds >= scale:
      return f"{seconds / scale:.3g} {unit}"
  return "below 1 µs" if seconds else "0"


def _short(number: float) -> str:
  for scale, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
    if number >= scale:
      return f"{number / scale:.3g}{unit}"
  return f"{number:.3g}"
