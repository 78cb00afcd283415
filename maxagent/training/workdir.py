"""A workdir belongs to one run."""

from __future__ import annotations

from pathlib import Path

from maxagent import config as configs
from maxagent.config import Config
from maxagent.errors import WorkdirMismatchError

# A run may go on with other values of these: they change where and when it computes, never what.
FREE_TO_CHANGE = ("mesh.", "checkpoint.", "evaluation.", "data.prefetch_batches")


def claim(config: Config, workdir: Path) -> None:
  """Writes the config into a new workdir, or checks that the one there describes the same run.

  Raises:
    WorkdirMismatchError: it does not; the differing fields are named.
  """
  path = workdir / "config.json"
  if path.exists():
    differing = [
      d for d in configs.differing_fields(configs.from_json(path.read_text()), config) if not d.startswith(FREE_TO_CHANGE)
    ]
    if differing:
      raise WorkdirMismatchError(
        f"{workdir} holds another run; it differs in {'; '.join(differing)} (theirs != yours). "
        "Use another --workdir, or put the old values back to go on with that run."
      )
  workdir.mkdir(parents=True, exist_ok=True)
  path.write_text(configs.to_json(config))
