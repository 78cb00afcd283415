"""`maxagent plan`: what a run will need and cost on a TPU slice, asked on a machine without one."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from maxagent.cli.arguments import at_least, path

if TYPE_CHECKING:
  from maxagent.config import Config
  from maxagent.plan.estimate import Plan

HELP = "say whether a run fits a TPU slice and what it will cost, without one"
DESCRIPTION = """\
Compiles the real train step for a TPU topology, here, with libtpu, and prints for one device: memory against HBM, operations,
collectives by mesh axis, the step time at best and what it waits for; and for the run: days and chip-hours.

  --config=configs/base_8b.py --topology=v5p:8x8x4             256 chips of one slice
  --topology=v5p:4x4x4 --slices=4                              four slices; the mesh's data axis lies across them
  --search --topology=v5p:8x8x4                                which mesh, recomputation and microbatches to take
  --min-chips --topology=v5p                                   the smallest slice that it fits on

An answer is kept (MAXAGENT_CACHE, else ~/.cache/maxagent) until the config, the code or a compiler changes.
"""
_COMPILED = 4  # settings that a search compiles


def add_parser(commands: Any) -> None:
  """Adds this command to the command line."""
  parser = commands.add_parser(
    "plan", help=HELP, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--topology", required=True, metavar="NAME", help="such as v5p:4x4x4, v5e:16x16, v6e:4x4, tpu7x:4x4x4")
  parser.add_argument("--slices", type=at_least(1), default=1, metavar="N", help="slices of that topology (default 1)")
  kind = parser.add_mutually_exclusive_group()
  kind.add_argument("--search", action="store_true", help="rank settings by arithmetic and compile the best")
  kind.add_argument("--min-chips", action="store_true", help="find the smallest slice; --topology names the chip alone")
  parser.add_argument(
    "--compile", type=at_least(1), default=_COMPILED, metavar="N", help=f"settings that a search compiles (default {_COMPILED})"
  )
  parser.add_argument("--json", action="store_true", help="print one JSON object; of a search, one a line, best first")
  parser.add_argument("--html", type=path, metavar="FILE", help="write a page there, and print nothing but its path")
  parser.add_argument("--save", type=path, metavar="DIR", help="keep the executable in this compilation cache of JAX too")
  parser.set_defaults(run=run, takes_config=True)


def run(arguments: argparse.Namespace) -> int:
  """Plans and prints."""
  from maxagent import config as configs

  config = configs.load(arguments.config_argv)  # before jax is loaded: a mistyped key answers at once
  plans = _plans(arguments, config)
  if arguments.json:
    for plan in plans:
      print(json.dumps(plan.to_dict()))
  elif arguments.html:
    from maxagent.plan.page import write_page

    print(write_page(plans[0], arguments.html, others=plans if arguments.search else ()))
  else:
    _print(plans, compared=arguments.search)
  return 0


def _plans(arguments: argparse.Namespace, config: Config) -> list[Plan]:
  from maxagent.errors import ConfigError
  from maxagent.plan import estimate, search
  from maxagent.plan.chips import examples, topology
  from maxagent.plan.compile import require_libtpu

  require_libtpu()
  if arguments.save and (arguments.search or arguments.min_chips):
    raise ConfigError("--save keeps the step of one setting, and a search compiles many; plan the one that you choose.")
  if arguments.min_chips:
    kind, _, box = arguments.topology.partition(":")
    if box or arguments.slices > 1:
      raise ConfigError(f"--min-chips finds the shape itself; give the chip alone, --topology={kind}, and no --slices.")
    topology(examples().get(kind, kind))  # refuses an unknown chip
    return [search.smallest(config, kind, tries=arguments.compile, progress=_say)]
  where = topology(arguments.topology, arguments.slices)
  if arguments.search:
    return search.search(config, where, compiled=arguments.compile, progress=_say)
  _say(f"compiling {config.name} for {where} (a minute or two, if it was not asked before)")
  return [estimate.make(config, where, save=arguments.save)]


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _print(plans: list[Plan], *, compared: bool) -> None:
  from rich.console import Console

  from maxagent.plan import screen, tables

  console = Console(highlight=False, markup=False, emoji=False)
  for piece in screen.view(plans[0]):
    console.print(piece)
  if compared:
    console.print()
    for piece in screen.table_view(tables.comparison(plans)):
      console.print(piece)
