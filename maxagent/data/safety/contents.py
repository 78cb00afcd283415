"""What of a document is looked at: the text; of a trace every segment's text, and the strings within its arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from maxagent.data.source_items import SourceDocument
from maxagent.data.sources import SourceTrace

# What every trace of a harness repeats: with it, any two runs of one agent would be nearly the same.
_SHARED = ("system", "tools")


def content(item: SourceDocument | SourceTrace, *, shared: bool = True) -> str:
  """The document's text, one segment a line; of a trace without `shared` what was wanted and done alone."""
  if isinstance(item, SourceDocument):
    return item.text
  lines: list[str] = []
  for segment in item.trace.segments:
    if not shared and segment.role in _SHARED:
      continue
    lines.append(segment.text)
    if segment.args:
      lines.extend(json_strings(segment.args))
  return "\n".join(lines)


def json_strings(text: str) -> list[str]:
  """The strings of a JSON text, keys among them; the text itself if it is no JSON. Example: `{"k": ["a"]}` has `k`, `a`."""
  try:
    return list(strings(json.loads(text)))
  except (ValueError, RecursionError):
    return [text]


def strings(value: Any, *, keys: bool = True) -> Iterator[str]:
  """Every string within a JSON value."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict):
    for key, inner in value.items():
      if keys:
        yield str(key)
      yield from strings(inner, keys=keys)
  elif isinstance(value, list | tuple):
    for inner in value:
      yield from strings(inner, keys=keys)


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
  """The JSON value with every string changed, keys among them."""
  if isinstance(value, str):
    return change(value)
  if isinstance(value, dict):
    return {change(key): map_strings(inner, change) for key, inner in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(map_strings(inner, change) for inner in value)
  return value
