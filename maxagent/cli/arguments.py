"""What a value on the command line must be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from maxagent.errors import ConfigError

T = TypeVar("T")


def path(text: str) -> Path:
  """A local path."""
  if not text:
    raise ConfigError("a path is empty; name a file or a folder (. is this one).")
  if re.match(r"[a-z0-9]+://", text):
    raise ConfigError(
      f"{text} is no local path: mount the bucket (Cloud Storage FUSE) and name it there, "
      "or work in a local folder and copy it (`gcloud storage cp -r`)."
    )
  return Path(text)


def readable(text: str) -> Path | str:
  """A local path, or an address in a bucket (gs://)."""
  return text if text.startswith("gs://") else path(text)


def at_least(least: int) -> Callable[[str], int]:
  """A whole number that is not below `least`."""

  def number(text: str) -> int:
    try:
      value = int(text)
    except ValueError:
      raise ConfigError(f"{text!r} is no whole number; expected {least} or more.") from None
    if value < least:
      raise ConfigError(f"{value} is given where a whole number of {least} or more is expected.")
    return value

  return number


def numbers(text: str) -> tuple[int, ...]:
  """Whole numbers of 0 or more, separated by commas."""
  return tuple(map(at_least(0), text.split(",")))


def or_off(parse: Callable[[str], T]) -> Callable[[str], T | None]:
  """A parser that takes `off` for None."""

  def parsed(text: str) -> T | None:
    return None if text == "off" else parse(text)

  parsed.__name__ = f"{parse.__name__} or off"
  return parsed
