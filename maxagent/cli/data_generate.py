"""`maxagent data generate`: traces by acting in environments."""

from __future__ import annotations

import argparse
from typing import Any

from maxagent.cli.arguments import at_least, path

HELP = "make agent traces by acting: an oracle solves episodes, at times after really doing something wrong"


def add_parser(verbs: Any) -> None:
  """Adds this verb to `maxagent data`."""
  parser = verbs.add_parser("generate", help=HELP, description=HELP.capitalize() + ".", allow_abbrev=False)
  parser.add_argument("--episodes", required=True, type=at_least(1), metavar="N", help="how many")
  parser.add_argument("--seed", type=at_least(0), default=0, metavar="S", help="episode i depends on (S, i) alone (default 0)")
  parser.add_argument("--output", required=True, type=path, metavar="DIR", help="folder for the traces and their index")
  parser.add_argument("--families", default="files,kv", metavar="A,B", help="environments to act in (default files,kv)")
  parser.add_argument(
    "--fault-rate", type=float, default=0.15, metavar="P", help="chance of a wrong action before each right one"
  )
  parser.add_argument(
    "--failing", type=float, default=0.0, metavar="P",
    help="share of episodes that a careless agent fails; each is corrected too, and told anew with the goal that it reached",
  )  # fmt: skip
  parser.add_argument("--difficulty", type=at_least(1), default=1, metavar="D", help="1 to 3 (default 1)")
  parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
  """Generates and prints what was made."""
  from maxagent.environments.generate import COUNTED, Mistakes, generate
  from maxagent.tracking.progress import Counter

  with Counter("episodes") as counter:
    index = generate(
      arguments.output,
      episodes=arguments.episodes,
      seed=arguments.seed,
      families=tuple(arguments.families.split(",")),
      mistakes=Mistakes(fault_rate=arguments.fault_rate, failing=arguments.failing),
      difficulty=arguments.difficulty,
      progress=counter.update,
    )
  counts = index["counts"]
  for name in COUNTED:
    print(f"{name:<9}", "  ".join(f"{key} {count:,}" for key, count in counts[name].items()) or "none")
  print(f"{index['episodes']:,} episodes, {index['shards'][0]['records']:,} records in {arguments.output}")
  return 0
