"""`maxagent data inspect`: what training will read, token by token, in the terminal or as a page."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from maxagent.cli.arguments import at_least, path

if TYPE_CHECKING:
  from maxagent.tracking.rows import Inspection

HELP = "show real batches or shards: tokens in their role's colour, weights, holes with their fills"
DESCRIPTION = """\
Shows rows of the batch that training reads at a step, or documents of a folder of shards. A document is told turn by turn: its
role, its weight in the loss, its tokens. A token has the colour of its role, is underlined where the step failed, dim where its
loss weighs less than 1 and struck out where it weighs nothing. [hole] and [fill] belong together; the true one of a decision's
candidates is marked. Above: how much there is of every source and role.

  --workdir=runs/quickstart          the run whose batch is shown
  --config=configs/quickstart.py     or a config, with --config.a.b=v as for `maxagent train`
  DIR                                or what `maxagent data build` wrote, with what it counted

  --html=FILE                        one page instead, with the shares of the sources over the whole schedule
"""


def add_parser(verbs: Any) -> None:
  """Adds this verb to `maxagent data`."""
  parser = verbs.add_parser(
    "inspect", help=HELP, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("folder", nargs="?", type=path, metavar="DIR", help="a folder of shards, or its train or heldout")
  parser.add_argument("--workdir", type=path, help="the folder of a run, in place of --config")
  parser.add_argument("--step", type=at_least(1), metavar="N", help="the batch of this step, from 1 (default 1)")
  parser.add_argument("--rows", type=at_least(1), default=4, metavar="N", help="rows or documents to show (default 4)")
  parser.add_argument("--first", type=at_least(0), metavar="N", help="the document of DIR to begin with, from 0 (default 0)")
  parser.add_argument("--tokenizer", type=path, metavar="FILE", help="of DIR (default: the one beside it that made it)")
  parser.add_argument("--html", type=path, metavar="FILE", help="write a page there, and print nothing but its path")
  parser.set_defaults(run=run, takes_config=True)


def run(arguments: argparse.Namespace) -> int:
  """Prints the rows, or writes the page."""
  _check(arguments)
  inspection = _of_shards(arguments) if arguments.folder else _of_batch(arguments)
  if arguments.html:
    from maxagent.tracking.rows_page import write_rows

    print(write_rows(inspection, arguments.html))
    return 0
  from rich.console import Console

  from maxagent.tracking.rows_text import inspection_view

  if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(errors="backslashreplace")  # a trace may hold what the terminal's encoding does not
  console = Console(highlight=False, markup=False, emoji=False)
  for piece in inspection_view(inspection):
    console.print(piece)
  return 0


def _check(arguments: argparse.Namespace) -> None:
  """Refuses what would be silently ignored.

  Raises:
    ConfigError: arguments that belong to different views.
  """
  from maxagent.errors import ConfigError

  if not (arguments.folder or arguments.workdir or arguments.config_argv):
    raise ConfigError("there is nothing to look at; give --workdir=DIR, --config=configs/NAME.py or a folder of shards.")
  if arguments.workdir and arguments.config_argv:
    raise ConfigError("--workdir and --config are both given; the run in a workdir has its own config. Name one of them.")
  named = [f"--{name}" for name in ("first", "tokenizer") if getattr(arguments, name) is not None]
  if named and not arguments.folder:
    raise ConfigError(f"{named[0]} is given without DIR, the folder of shards that it is about; name one.")
  if arguments.step is not None and arguments.folder:
    raise ConfigError(f"--step is given with {arguments.folder}; shards have no steps. Leave DIR out, or begin at --first=N.")


def _of_batch(arguments: argparse.Namespace) -> Inspection:
  from maxagent import config as configs
  from maxagent.cli.inspected import inspect_batch
  from maxagent.cli.trained import stored_config

  config = stored_config(arguments.workdir) if arguments.workdir else configs.load(arguments.config_argv)
  step = arguments.step or 1
  return inspect_batch(config, step=step, rows=arguments.rows, workdir=arguments.workdir, charts=arguments.html is not None)


def _of_shards(arguments: argparse.Namespace) -> Inspection:
  from maxagent import config as configs
  from maxagent.cli.inspected import inspect_shards
  from maxagent.cli.trained import stored_config

  config = None
  if arguments.workdir or arguments.config_argv:
    config = stored_config(arguments.workdir) if arguments.workdir else configs.load(arguments.config_argv)
  return inspect_shards(
    arguments.folder, first=arguments.first or 0, count=arguments.rows, tokenizer=arguments.tokenizer, config=config
  )
