"""What follows from a compiler's answer: the one that libtpu 0.0.52 gave of configs/base_8b.py on 256 chips."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import pathlib
import re

import pytest

from maxagent import config as configs
from maxagent.plan import page, screen, tables
from maxagent.plan.chips import topology
from maxagent.plan.collectives import Traffic
from maxagent.plan.compile import Compiled, _error, _read
from maxagent.plan.estimate import Plan
from maxagent.plan.memory import measured, size_text
from maxagent.plan.roofline import roofline

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = configs.load([f"--config={ROOT / 'configs' / 'base_8b.py'}"])


@pytest.fixture(scope="module")
def plan() -> Plan:
  record = json.loads((ROOT / "tests" / "golden" / "plan_base_8b.json").read_text())
  return Plan.from_dict(record | {"config": json.loads(configs.to_json(CONFIG))})


@pytest.fixture(scope="module")
def too_large(plan: Plan) -> Plan:
  return dataclasses.replace(
    plan, memory=dataclasses.replace(plan.memory, temp=plan.memory.hbm), products=None, traffic=(), compile_seconds=None
  )


def test_a_plan_is_the_same_after_it_was_written_and_read(plan: Plan):
  assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_the_run_at_a_given_mfu_is_what_a_hand_computes(plan: Plan):
  pace = plan.at(0.4)
  flops = plan.flops.model * CONFIG.tokens_per_step
  assert pace.step_seconds == pytest.approx(flops / (0.4 * 459e12 * 256))
  assert pace.days == pytest.approx(pace.step_seconds * CONFIG.training.steps / 86_400)
  assert pace.chip_hours == pytest.approx(pace.days * 24 * 256)
  assert pace.tokens_per_second * pace.step_seconds == pytest.approx(CONFIG.tokens_per_step)


def test_the_bound_is_the_slowest_part_and_its_mfu_cannot_be_reached_by_any_run(plan: Plan):
  roof = plan.roofline
  assert roof.bound == "compute" and roof.best_seconds == roof.compute
  assert roof.worst_seconds == roof.compute + roof.hbm + roof.ici + roof.dcn
  assert plan.best.mfu < 1
  assert plan.best.step_seconds == pytest.approx(roof.best_seconds)


def test_the_compiled_program_does_what_the_config_counts(plan: Plan):
  # Two ways to the same number: products read out of the program, and formulas. Muon's share is in the first alone.
  tokens = CONFIG.tokens_per_step / plan.topology.devices
  assert (plan.products + plan.flops.kernels * tokens) / (plan.flops.hardware * tokens) == pytest.approx(1, abs=0.02)


def test_no_speed_above_the_bound_is_offered(plan: Plan):
  slow = dataclasses.replace(plan, roofline=dataclasses.replace(plan.roofline, dcn=plan.roofline.model_seconds / 0.35))
  run, *_ = tables.tables(slow)
  assert [row.cells[0] for row in run.rows] == ["35% bound", "30%"]
  assert slow.usual.mfu == pytest.approx(0.35)


def test_what_a_chip_waits_for_names_the_bound(plan: Plan):
  slow = Traffic(kind="all-reduce", axes="data", network="DCN", times=1, sent_bytes=1e12, seconds=40.0)
  found = roofline(CONFIG, plan.topology, plan.mesh, flops=plan.flops, products=plan.products, sent=(slow,))
  assert found.bound == "DCN" and found.best_seconds == 40.0


def test_memory_is_split_so_that_its_parts_are_the_compilers_whole(plan: Plan):
  compiled = Compiled(
    mesh=plan.mesh, coords=(), params_bytes=100, optimizer_bytes=200, batch_bytes=10, state_bytes=0,
    memory={"argument": 330, "output": 305, "alias": 300, "generated_code": 7, "temp": 50}, temp_bytes=50, program=None,
    seconds=1.0, peak_bytes=0, versions={},
  )  # fmt: skip
  memory = measured(CONFIG, plan.topology, compiled)
  assert memory.needed == 330 + (305 - 300) + 50 + 7
  assert (memory.padding, memory.activations + memory.temp) == (20 + 5, 50)


LIBTPU_SAYS = (
  "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries "
  "(596.05G) exceeds available HBM (95.73G). HLO module: jit_step."
)


def test_a_program_that_is_too_large_is_told_in_bytes_and_not_as_a_failure(plan: Plan):
  result = {
    "error": "JaxRuntimeError", "message": LIBTPU_SAYS, "mesh": plan.mesh, "coords": [[0, 0, 0]],
    "params_bytes": 1, "optimizer_bytes": 1, "batch_bytes": 1, "state_bytes": 1, "peak_bytes": 1, "versions": {},
  }  # fmt: skip
  compiled = _read(result, None, plan.topology)
  assert compiled.memory is None and compiled.temp_bytes == int(596.05 * 2**30)
  memory = measured(CONFIG, plan.topology, compiled)
  assert memory.verdict() == f"DOES NOT FIT by {size_text(596.05 * 2**30 + 3 - 95.73 * 2**30)} (523% of a device's HBM)"


def test_a_refusal_keeps_its_type_and_names_the_topology():
  error = _error("MeshError", "mesh.fsdp = 3 does not divide.", topology("v5p:2x2x1"))
  assert type(error).__name__ == "MeshError" and str(error).startswith("v5p:2x2x1 (4 chips): mesh.fsdp = 3")


def text_of(plan: Plan) -> str:
  from rich.console import Console

  console = Console(width=130, file=io.StringIO())
  for piece in screen.view(plan):
    console.print(piece)
  return console.file.getvalue()


def test_the_screen_gives_the_verdict_first_and_every_assumption_last(plan: Plan, too_large: Plan):
  lines = text_of(plan).splitlines()
  assert lines[0] == "base_8b on v5p:8x8x4 (256 chips), fsdp=64 tensor=4"
  assert lines[1].startswith("FITS with 72.9 GiB")
  assert all(line in " ".join(lines) for line in plan.assumptions)
  assert text_of(too_large).splitlines()[1].startswith("DOES NOT FIT by ")
  assert "too large to be made" in text_of(too_large) and "left no text" in text_of(too_large)


def test_the_page_shows_what_the_screen_shows_and_asks_nobody_for_anything(plan: Plan, tmp_path: pathlib.Path):
  text = page.write_page(plan, tmp_path / "plan.html", others=[plan]).read_text()
  shown = html.unescape(re.sub(r"<[^>]+>", "\n", text))
  for table in [tables.comparison([plan]), *tables.tables(plan)]:
    assert table.title in shown
    for row in table.rows:
      assert all(cell in shown for cell in row.cells)
  assert not re.search(r"(src|href)=\"(?!data:)", text) and "<script" not in text


def test_sizes_are_told_in_three_digits():
  assert [size_text(size) for size in (0, 5e5, 2**30, 23.456 * 2**30, 234.5 * 2**40)] == [
    "0.00 MiB", "0.48 MiB", "1.00 GiB", "23.5 GiB", "234 TiB",
  ]  # fmt: skip
