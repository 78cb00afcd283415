"""Keys, tokens and passwords in text: found by the library Kingfisher (kingfisher-secret-scanner) and a few forms of our own.

Kingfisher (MongoDB, Apache-2.0) has some 490 rules, most with check sums or context, and never uses the network while it scans.
What it leaves out as an example or as unproven is not worth learning either, so forms that are unmistakable are taken besides.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import kingfisher_sdk

from maxagent.data.safety.contents import json_strings, map_strings
from maxagent.data.source_items import SourceDocument
from maxagent.data.sources import SourceTrace
from maxagent.traces.schema import Segment, Trace

# Kind, a substring without which the pattern cannot match (a search for it costs nothing beside the pattern), and the pattern,
# whose last group is what is removed.
_FORMS: tuple[tuple[str, str, re.Pattern[str]], ...] = (
  ("aws_access_token", "A", re.compile(r"(?<![A-Z0-9])((?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16})(?![A-Z0-9])")),
  ("azure_account_key", "AccountKey=", re.compile(r"AccountKey=([A-Za-z0-9+/]{86}==)")),
  ("telegram_bot_token", ":AA", re.compile(r"(?<![\w-])(\d{8,10}:AA[\w-]{33})(?![\w-])")),
  (
    "private_key",
    "PRIVATE KEY",
    # Cut off, so that Kingfisher leaves it: its lines of base64, between which JSON has a backslash and an n.
    re.compile(
      r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----(?:(?:\s|\\[nr])*[A-Za-z0-9+/=]{16,})+"
      r"(?:(?:\s|\\[nr])+[A-Za-z0-9+/=]{1,63}\Z)?)"
    ),
  ),
  (
    "uri_password",
    "://",
    # Without a digit or a capital it is, in documentation, mostly a placeholder such as user:password.
    re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://([\w.%+-]{0,64}:(?=[^\s@]*[A-Z0-9])[^\s:/@\"'<>{}$\[\]\\]{4,128})@"),
  ),
  ("bearer_token", "earer ", re.compile(r"[Bb]earer ((?=[A-Za-z_.~+/-]*\d)(?=[\d_.~+/-]*[A-Za-z])[A-Za-z0-9_.~+/-]{24,}=*)")),
)
_PREFIXES = re.compile(r"^(?:betterleaks\.|kingfisher\.|custom\.|veles\.secrets/)")
# A helper finding is a part of a credential, such as an account's name; these parts are secret by themselves.
_SECRET_PARTS = re.compile(r"secret|password|token|private|api-?key")
_SHORT = 12
_PLACEHOLDERS = frozenset({"password", "passwd", "pass", "secret", "changeme", "your_password", "mypassword"})


def mark(kind: str) -> str:
  """What stands in place of a secret. Example: `mark("aws_key")` is `[secret removed: aws_key]`."""
  return f"[secret removed: {kind}]"


@dataclasses.dataclass(frozen=True, slots=True)
class Secret:
  """A piece of text to replace, wherever it stands in the document; `shown` stands there afterwards."""

  text: str
  shown: str
  kind: str


class SecretScanner:
  """Finds and replaces secrets; compiling the rules takes a second or two, the first time on a machine several."""

  def __init__(self) -> None:
    self._scanner = kingfisher_sdk.Scanner(kingfisher_sdk.Rules(confidence="medium"))

  def find(self, text: str) -> list[Secret]:
    """The secrets of a text, the longest first, each once."""
    data = text.encode("utf-8", "replace")
    found: dict[str, Secret] = {}
    for finding in self._scanner.scan(data):
      kind = _PREFIXES.sub("", finding.rule_id).replace("-", "_").replace(".", "_").replace("/", "_")
      if finding.visible or _SECRET_PARTS.search(finding.rule_id):
        start, stop = finding.location["start_offset"], finding.location["end_offset"]
        _add(found, data[:start].decode("utf-8", "replace")[-1:], data[start:stop].decode("utf-8", "replace"),
             data[stop : stop + 4].decode("utf-8", "ignore")[:1], kind)  # fmt: skip
    for kind, needle, pattern in _FORMS:
      if needle in text:
        for match in pattern.finditer(text):
          start, stop = match.span(1)
          _add(found, text[max(0, start - 1) : start], match[1], text[stop : stop + 1], kind)
    return sorted(found.values(), key=lambda secret: (-len(secret.text), secret.text))

  def redact(self, item: SourceDocument | SourceTrace) -> tuple[SourceDocument | SourceTrace, collections.Counter[str]]:
    """The document without its secrets, and how many pieces were removed, by kind.

    Example: `id AKIAIOSFODNN7EXAMPLE .` gives `id [secret removed: aws_access_token] .`, and {"aws_access_token": 1}.
    """
    counts: collections.Counter[str] = collections.Counter()
    if isinstance(item, SourceDocument):
      secrets = self.find(item.text)
      return (dataclasses.replace(item, text=redact_text(item.text, secrets, counts)), counts) if secrets else (item, counts)
    secrets = self.find(_looked_at(item.trace))
    if not secrets:
      return item, counts
    return dataclasses.replace(item, trace=_redact_trace(item.trace, secrets, counts)), counts


def redact_text(text: str, secrets: Sequence[Secret], counts: collections.Counter[str]) -> str:
  """The text with every secret replaced; counts them."""
  for secret in secrets:
    if number := text.count(secret.text):
      counts[secret.kind] += number
      text = text.replace(secret.text, secret.shown)
  return text


def redact_json(text: str, secrets: Sequence[Secret], counts: collections.Counter[str]) -> str:
  """The same of a JSON text, which stays JSON: what is removed with its quotes, or is written with escapes, is removed within
  the strings instead. Text that was no JSON is treated as text."""
  tried: collections.Counter[str] = collections.Counter()
  plain = redact_text(text, secrets, tried)
  value = _parsed(plain)
  if value is _NO_JSON:
    tried.clear()
    plain, value = text, _parsed(text)
    if value is _NO_JSON:
      return redact_text(text, secrets, counts)
  changed = map_strings(value, lambda string: redact_text(string, secrets, tried))
  counts.update(tried)
  return plain if changed == value else json.dumps(changed, ensure_ascii=False)


def _redact_trace(trace: Trace, secrets: Sequence[Secret], counts: collections.Counter[str]) -> Trace:
  def segment(old: Segment) -> Segment:
    args = old.args if old.args is None else redact_json(old.args, secrets, counts)
    return dataclasses.replace(old, text=redact_text(old.text, secrets, counts), args=args)

  # The goal repeats its segment, so it is not counted.
  goal = redact_text(trace.goal, secrets, collections.Counter())
  tools: Any = map_strings(trace.tools, lambda string: redact_text(string, secrets, counts))
  return dataclasses.replace(trace, segments=tuple(map(segment, trace.segments)), goal=goal, tools=tools)


def _looked_at(trace: Trace) -> str:
  """All of a trace in one text: a secret found beside its name is then known wherever it stands alone."""
  pieces = [trace.goal] + [json.dumps(tool, ensure_ascii=False) for tool in trace.tools]
  for segment in trace.segments:
    pieces.append(segment.text)
    if segment.args:
      pieces.append(segment.args)
      if "\\" in segment.args:
        pieces.extend(json_strings(segment.args))
  return "\n".join(pieces)


def _add(found: dict[str, Secret], before: str, text: str, after: str, kind: str) -> None:
  shown = mark(kind)
  if not text or "[secret removed" in text or text.lower() in _PLACEHOLDERS:
    return
  if len(text) < 8 or (len(text) < _SHORT and text.isalpha()):
    # It may be an ordinary word elsewhere in the document: only where it stands between the same characters.
    text, shown = before + text + after, before + shown + after
  found.setdefault(text, Secret(text, shown, kind))


_NO_JSON = object()


def _parsed(text: str) -> Any:
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return _NO_JSON
