"""`maxagent checkpoint`: which checkpoints there are, and whether they are whole. Both verbs only read."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maxagent.cli.arguments import at_least, path

if TYPE_CHECKING:
  from maxagent.checkpoint import Entry

DAMAGED_EXIT = 1
STATES = """\
  saved         its small files match their digests (`list`)
  whole         every array and item matches its digest (`verify`)
  damaged       the file, the array and what is wrong; a run that goes on sets such a step aside and takes the one before it
  quarantined   a run found it damaged and moved it to damaged/
  unfinished    a save under way, or one that a kill cut short

DIR is a run's workdir, its checkpoints folder, or one step in that.
"""


def add_parser(commands: Any) -> None:
  """Adds this command and its verbs to the command line."""
  help_text = "list the checkpoints of a run, and prove them whole"
  parser = commands.add_parser("checkpoint", help=help_text, description=help_text.capitalize() + ".", allow_abbrev=False)
  verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
  listing = _verb(
    verbs, "list", "show what lies in a folder of checkpoints; reads no array", "Exits with 0, or 2 for a bad DIR."
  )
  listing.set_defaults(run=run_list)
  ends = (
    "Exits with 0 if every step is whole, 1 if one is damaged (quarantined and unfinished ones do not count), 2 for a bad DIR."
  )
  verifying = _verb(verbs, "verify", "read every array of the saved steps and hold it against its digest", ends)
  verifying.add_argument("--step", type=at_least(0), metavar="N", help="this step alone")
  verifying.set_defaults(run=run_verify)


def _verb(verbs: Any, name: str, help_text: str, ends: str) -> Any:
  description = f"{help_text.capitalize()}; changes nothing.\n\n{STATES}{ends}\n"
  parser = verbs.add_parser(
    name, help=help_text, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("folder", type=path, metavar="DIR", help="a workdir, a checkpoints folder, or one step in it")
  parser.add_argument("--json", action="store_true", help="print one JSON object a step")
  return parser


def run_list(arguments: argparse.Namespace) -> int:
  """Prints what there is."""
  folder, step = _located(arguments.folder)
  _print(_entries(folder, step), as_json=arguments.json)
  return 0


def run_verify(arguments: argparse.Namespace) -> int:
  """Prints what there is and whether it is whole; 1 if a step is damaged.

  Raises:
    CheckpointError: no finished checkpoint is there, or not the named step.
    ConfigError: DIR is one step and --step another.
  """
  from maxagent.checkpoint import verify
  from maxagent.errors import CheckpointError, ConfigError
  from maxagent.tracking.progress import Counter

  folder, step = _located(arguments.folder)
  if step is not None and arguments.step not in (None, step):
    raise ConfigError(f"{arguments.folder} is step {step} and --step={arguments.step} was given; name one of the two.")
  step = arguments.step if step is None else step
  entries = _entries(folder, None)
  with Counter("bytes") as counter:
    verified = verify(folder, step, progress=counter.update)
  if not verified:
    raise CheckpointError(
      f"{folder} holds no finished checkpoint to verify; `maxagent checkpoint list {folder}` shows what it holds."
    )
  reasons = {one.step: one.reason for one in verified}
  _print([_judged(e, reasons) for e in entries if step is None or (e.step == step and e.readable)], as_json=arguments.json)
  return DAMAGED_EXIT if any(reasons.values()) else 0


def _located(given: Path) -> tuple[Path, int | None]:
  """The folder of checkpoints, and the step if DIR is one.

  Raises:
    CheckpointError: DIR is no folder.
  """
  from maxagent.checkpoint import locate
  from maxagent.errors import CheckpointError

  if not given.is_dir():
    raise CheckpointError(f"{given} is no folder; give a run's workdir, its checkpoints folder, or one step in that.")
  return locate(given.absolute())


def _entries(folder: Path, step: int | None) -> list[Entry]:
  from maxagent.checkpoint import catalog
  from maxagent.errors import CheckpointError

  found = [entry for entry in catalog(folder) if step is None or (entry.step == step and entry.readable)]
  if not found:
    raise CheckpointError(f"{folder} holds no checkpoint; give a run's workdir, its checkpoints folder, or one step in that.")
  return found


def _judged(entry: Entry, reasons: Mapping[int, str]) -> Entry:
  """The entry with what `verify` found; one that it did not read stays as it was."""
  if not entry.readable or entry.step not in reasons:
    return entry
  reason = reasons[entry.step]
  return dataclasses.replace(entry, state="damaged" if reason else "whole", reason=reason)


def _print(entries: Sequence[Entry], *, as_json: bool) -> None:
  if as_json:
    for entry in entries:
      print(json.dumps(dataclasses.asdict(entry) | {"path": str(entry.path)}))
    return
  print(f"{'step':>10}  {'tokens':>16}  {'MB':>10}  {'saved (UTC)':<19}  {'processes':>9}  state")
  for entry in entries:
    print(_line(entry))
    if entry.reason:
      print("".join(f"            {line}\n" for line in entry.reason.splitlines()), end="")


def _line(entry: Entry) -> str:
  tokens = "-" if entry.tokens is None else f"{entry.tokens:,}"
  processes = "-" if entry.processes is None else str(entry.processes)
  at = datetime.datetime.fromtimestamp(entry.saved_at, datetime.UTC) if entry.saved_at else None
  when = f"{at:%Y-%m-%d %H:%M:%S}" if at else "-"
  return f"{entry.step:>10}  {tokens:>16}  {entry.size_bytes / 1e6:>10,.1f}  {when:<19}  {processes:>9}  {entry.state}"
