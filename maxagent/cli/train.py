"""`maxagent train`: trains a config's run in a workdir, or goes on with it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxagent.cli.arguments import path

if TYPE_CHECKING:
  from maxagent.config import Config
  from maxagent.parallel import Layout
  from maxagent.training.loop import Evaluate

HELP = "train a model, measure it while it trains, write a report"
DESCRIPTION = """\
Trains the run that a config file describes. Start it again with the same --workdir and it goes on from the last good
checkpoint. SIGTERM or Ctrl-C saves first and exits with 75.

  --config=configs/quickstart.py          the run; configs/x.py:ARG hands ARG to the file's get_config
  --config.training.steps=1000            any field of it, by its path
"""


def add_parser(commands: Any) -> None:
  """Adds this command to the command line."""
  parser = commands.add_parser(
    "train", help=HELP, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--workdir", required=True, type=path, help="folder for config, metrics, checkpoints and report")
  parser.set_defaults(run=run, takes_config=True)


def run(arguments: argparse.Namespace) -> int:
  """Trains; 75 if it was told to stop before the end."""
  from maxagent import config as configs

  config = configs.load(arguments.config_argv)  # before jax is loaded: a mistyped key answers at once

  from maxagent.parallel import Layout, make_mesh, processes
  from maxagent.tracking.ledger import Ledger
  from maxagent.tracking.report import write_report
  from maxagent.tracking.writers import METRICS_FILE, read_metrics
  from maxagent.training.faults import PREEMPTED_EXIT
  from maxagent.training.loop import train

  processes.initialize()
  layout = Layout(make_mesh(config.mesh))
  workdir = arguments.workdir
  outcome = train(config, workdir, layout=layout, evaluate=_evaluation(config, layout, workdir))
  if processes.is_first():
    if outcome.preempted:
      done = f"saved step {outcome.step}" if outcome.step else "no step was done yet"
      print(f"told to stop: {done}; run the same command to go on")
    else:
      report = write_report(workdir)
      print(Ledger.load(workdir).with_outer(workdir).table())
      print(summary(read_metrics(workdir / METRICS_FILE)[-1], report=report))
  return PREEMPTED_EXIT if outcome.preempted else 0


def summary(record: Mapping[str, Any], *, report: Path) -> str:
  """One line: what was reached and where the report lies."""
  rates = [
    f"{name} {record[key]:.1%}" for name, key in (("success", "eval/success"), ("recovery", "eval/recovery")) if key in record
  ]
  loss = f"loss: {record['train/loss']:.3f}" if "train/loss" in record else "no token of the last step was supervised"
  return f"report: {report}   " + (f"agent: {', '.join(rates)}" if rates else loss)


def _evaluation(config: Config, layout: Layout, workdir: Path) -> Evaluate:
  """What the loop calls to measure: metrics into the step's record, episodes into episodes.jsonl."""
  from maxagent.evals.runner import Evaluator, write_episodes
  from maxagent.sampling.episodes import Interrupted
  from maxagent.tokenizer import Tokenizer

  evaluator = Evaluator.open(config, Tokenizer.load(config.data.tokenizer), layout)

  def evaluate(params: Any, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
    try:
      metrics, episodes = evaluator(params, step, stop=stop)
    except Interrupted:
      return None
    if episodes:
      write_episodes(workdir, episodes)
    return metrics

  return evaluate
