"""What a document goes through before it is encoded, and after."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from maxagent.data.document import Document
from maxagent.data.safety.contents import content
from maxagent.data.safety.decontaminate import EvaluationSet, EvaluationSets
from maxagent.data.safety.repeats import LONGEST, REPEATS, mute_all
from maxagent.data.safety.words import Words, words
from maxagent.data.source_items import Reject
from maxagent.data.sources import Item, SourceTrace
from maxagent.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SafetyOptions:
  """What is looked for; None or False is off."""

  secrets: bool = True  # removed, and a mark left
  # Jaccard similarity of word 5-grams from which a later document is left out; see duplicates.NearDuplicates for what it means.
  near_duplicates: float | None = 0.8
  evaluation_sets: tuple[EvaluationSet, ...] = ()
  contaminated: str = "reject"  # or "count": kept, and counted
  repeats: int | None = REPEATS  # copies in a row of 1 to `repeated_tokens` tokens that are muted
  repeated_tokens: int = LONGEST

  def __post_init__(self) -> None:
    if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
      raise ConfigError(f"near_duplicates is {self.near_duplicates}; it is a Jaccard similarity, so above 0 and at most 1.")
    if self.contaminated not in ("reject", "count"):
      raise ConfigError(f"contaminated is {self.contaminated!r}; expected 'reject' or 'count'.")
    if self.repeats is not None and self.repeats < 2:
      raise ConfigError(f"repeats is {self.repeats}; expected 2 or more copies, or None.")
    if self.repeated_tokens < 1:
      raise ConfigError(f"repeated_tokens is {self.repeated_tokens}; expected 1 or more.")


class Checked(NamedTuple):
  """A document as it may be trained on, or why not; what near-duplicates are found by; what it adds to the counts."""

  item: Item | Reject
  signature: bytes
  counts: Mapping[str, int]


class Safety:
  """Checks documents, each by itself, so that any process can; near-duplicates are then found by their signatures.

  The counts, see `count_names`:
      secrets, secrets_<kind>            pieces removed
      documents_with_secrets
      near_duplicates                    documents
      contaminated, contaminated_<set>   documents
      muted_tokens
  """

  def __init__(self, options: SafetyOptions | None = None) -> None:
    self.options = options = options or SafetyOptions()
    self._scanner = None
    # The libraries are loaded only where they are used: compiling the rules for secrets alone takes a second.
    if options.secrets:
      from maxagent.data.safety.secrets import SecretScanner

      self._scanner = SecretScanner()
    self._sets = EvaluationSets(options.evaluation_sets)

  def check(self, item: Item) -> Checked:
    """What becomes of a document."""
    counts: collections.Counter[str] = collections.Counter()
    text = words(content(item)) if self._sets.names else None
    if text is not None and (overlap := self._sets.overlap(text)):
      counts.update(["contaminated", _counted(overlap.evaluation_set)])
      if self.options.contaminated == "reject":
        reason = f"holds a piece of {overlap.evaluation_set} ({overlap.ngrams} n-grams): {overlap.shared}"
        return Checked(Reject(item.origin, reason), b"", counts)
    return Checked(self._redacted(item, counts), self._signature(item, text), counts)

  def mute(self, documents: Sequence[Document]) -> list[Document]:
    """The encoded documents, repeated n-grams muted; those without are the same objects."""
    if self.options.repeats is None:
      return list(documents)
    return mute_all(documents, longest=self.options.repeated_tokens, repeats=self.options.repeats)

  def _redacted(self, item: Item, counts: collections.Counter[str]) -> Item:
    if self._scanner is None:
      return item
    item, removed = self._scanner.redact(item)
    if removed:
      counts["documents_with_secrets"] += 1
      counts["secrets"] += removed.total()
      counts.update({f"secrets_{kind}": number for kind, number in removed.items()})
    return item

  def _signature(self, item: Item, text: Words | None) -> bytes:
    if self.options.near_duplicates is None:
      return b""
    from maxagent.data.safety.duplicates import signature

    return signature(words(content(item, shared=False)) if text is None or isinstance(item, SourceTrace) else text)


def count_names(options: SafetyOptions) -> tuple[str, ...]:
  """What is counted under these options, found or not."""
  names = ["secrets", "documents_with_secrets"] if options.secrets else []
  names += ["near_duplicates"] if options.near_duplicates is not None else []
  names += ["contaminated", *(_counted(s.name) for s in options.evaluation_sets)] if options.evaluation_sets else []
  return (*names, "muted_tokens") if options.repeats is not None else tuple(names)


def _counted(evaluation_set: str) -> str:
  return "contaminated_" + re.sub(r"\W+", "_", evaluation_set)
