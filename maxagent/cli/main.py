"""`maxagent COMMAND`: finds the command, runs it, and turns a user's mistake into one message and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import maxagent
from maxagent.cli import checkpoint, data, evaluate, jumps, plan, play, report, train
from maxagent.errors import ConfigError, DiskFullError, MaxagentError

INTERRUPTED_EXIT = 130  # 128 + SIGINT, as shells say it
COMMANDS = (train, evaluate, play, data, checkpoint, plan, report, jumps)
EPILOG = """\
first steps:
  maxagent data generate --episodes 1000 --output DATA/episodes      an agent's traces, by acting
  maxagent data build --kind=web --output DATA/web FILES...          your own text
  maxagent train --config=configs/quickstart.py --workdir=runs/me    train and measure
  maxagent play --workdir=runs/me                                    watch it act
"""


def parser() -> argparse.ArgumentParser:
  """The whole command line."""
  root = argparse.ArgumentParser(
    prog="maxagent",
    description="Pre-training of agentic language models.",
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  root.add_argument("--version", action="version", version=f"maxagent {maxagent.__version__}")
  commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
  for module in COMMANDS:
    module.add_parser(commands)
  return root


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; 0 done, 2 a user's mistake, 75 preempted and to be run again."""
  try:
    arguments, rest = parser().parse_known_args(argv)
    takes_config = getattr(arguments, "takes_config", False)
    unknown = [word for i, word in enumerate(rest) if not (takes_config and _is_config(rest, i))]
    if unknown:
      raise ConfigError(f"unknown argument {unknown[0]!r}; see `maxagent {arguments.command} --help`.")
    arguments.config_argv = rest
    return int(arguments.run(arguments))
  except MaxagentError as error:
    return _refuse(f"{type(error).__name__}: {error}")
  except BrokenPipeError:
    return 0
  except KeyboardInterrupt:
    return _refuse("interrupted", code=INTERRUPTED_EXIT)
  except (OSError, RuntimeError) as error:
    if "No space left on device" in str(error):
      return _refuse(f"{DiskFullError.__name__}: the disk is full ({error}); free some space and start again.")
    if not isinstance(error, OSError) or error.filename is None:
      raise  # not about a path that the user named
    return _refuse(f"{type(error).__name__}: {error.filename}: {error.strerror}; name another path.")


def _refuse(message: str, *, code: int = 2) -> int:
  print(f"maxagent: {message}", file=sys.stderr)
  return code


def _is_config(rest: Sequence[str], i: int) -> bool:
  """Whether an argument belongs to the config: --config..., or the value after a --config... without `=`."""
  return rest[i].startswith("--config") or (i > 0 and rest[i - 1].startswith("--config") and "=" not in rest[i - 1])


if __name__ == "__main__":
  sys.exit(main())
