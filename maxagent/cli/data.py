"""`maxagent data`: documents and traces into shards, and a look at what training will read."""

from __future__ import annotations

from typing import Any

from maxagent.cli import data_build, data_generate, data_inspect, data_tokenizer


def add_parser(commands: Any) -> None:
  """Adds this command and its verbs to the command line."""
  help_text = "make, build and look at training data"
  parser = commands.add_parser("data", help=help_text, description=help_text.capitalize() + ".", allow_abbrev=False)
  verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
  for module in (data_generate, data_tokenizer, data_build, data_inspect):
    module.add_parser(verbs)
