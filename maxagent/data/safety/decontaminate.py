"""Documents that hold a piece of an evaluation set: 13 words in a row of one of its items.

Source: GPT-3 (arXiv 2005.14165), appendix C: words in lower case without punctuation, 13-grams; a shorter item is matched
whole, from 8 words on.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from maxagent.data.safety.contents import strings
from maxagent.data.safety.words import Hashes, Words, ngrams, words
from maxagent.errors import ConfigError

NGRAM = 13
SHORTEST = 8
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt", ".txt.gz")
_SIEVE_BITS = 16  # per n-gram, rounded up: one in 16 or fewer of foreign n-grams reaches the binary search


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationSet:
  """A named file of test items: every string of its records counts; of a .txt every line is an item."""

  name: str
  path: str

  @classmethod
  def parse(cls, text: str) -> EvaluationSet:
    """NAME=FILE, or FILE, whose stem is the name. Example: `gsm8k=tests/test.jsonl` is named `gsm8k`."""
    name, _, path = text.rpartition("=")
    return cls(name or re.split(r"\.(?:jsonl|json|txt)", pathlib.Path(path).name)[0], path)


class Overlap(NamedTuple):
  """What a document shares: the set's name, and the words as they stand in the document, normalised."""

  evaluation_set: str
  shared: str
  ngrams: int  # of the document, in any set


class EvaluationSets:
  """The n-grams of evaluation sets, as sorted 64-bit hashes: 12 bytes for each, and 2 to 4 of sieve.

  Example, were NGRAM 3 and SHORTEST 2: of the item `when did the fox jump` a document may not hold `did the fox`, and of
  the item `the fox` not the whole.
  """

  def __init__(self, sets: Sequence[EvaluationSet]) -> None:
    names = [s.name for s in sets]
    if len(set(names)) < len(names):
      raise ConfigError(f"evaluation sets are named {', '.join(names)}; give each a name of its own, as NAME=FILE.")
    self.names = tuple(names)
    self.items = 0
    self.ignored = 0  # strings of fewer than SHORTEST words
    found: dict[int, list[tuple[Hashes, int]]] = {}
    for number, evaluation_set in enumerate(sets):
      for text in _texts(evaluation_set):
        item = words(text)
        if len(item) < SHORTEST:
          self.ignored += 1
          continue
        self.items += 1
        n = min(NGRAM, len(item))
        found.setdefault(n, []).append((ngrams(item.hashes, n), number))
    self._tables = {n: _Table.of(parts) for n, parts in sorted(found.items(), reverse=True)}

  def __len__(self) -> int:
    """How many n-grams are known."""
    return sum(len(table.hashes) for table in self._tables.values())

  def overlap(self, document: Words) -> Overlap | None:
    """What the document shares with a set, its first longest n-gram shown."""
    first: tuple[int, int, int] | None = None
    count = 0
    for n, table in self._tables.items():
      places, numbers = table.find(ngrams(document.hashes, n))
      count += len(places)
      if first is None and len(places):
        first = n, int(places[0]), int(numbers[0])
    if first is None:
      return None
    n, place, number = first
    return Overlap(self.names[number], document.show(place, n), count)


@dataclasses.dataclass(frozen=True)
class _Table:
  hashes: Hashes  # sorted
  numbers: npt.NDArray[np.uint32]  # of the first set that has each
  sieve: npt.NDArray[np.uint8]  # a bit per value of a hash's upper bits: most foreign n-grams are known by it at once
  shift: np.uint64

  @classmethod
  def of(cls, parts: Sequence[tuple[Hashes, int]]) -> _Table:
    hashes, first = np.unique(np.concatenate([h for h, _ in parts]), return_index=True)
    numbers = np.repeat([number for _, number in parts], [len(h) for h, _ in parts])[first].astype(np.uint32)
    bits = int(len(hashes) * _SIEVE_BITS - 1).bit_length()
    shift = np.uint64(64 - bits)
    sieve = np.zeros(max(1, (1 << bits) >> 3), np.uint8)
    upper = hashes >> shift
    np.bitwise_or.at(sieve, (upper >> np.uint64(3)).astype(np.int64), _bit(upper))
    return cls(hashes, numbers, sieve, shift)

  def find(self, hashes: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """Which of some hashes are known, and of which set."""
    upper = hashes >> self.shift
    maybe = np.flatnonzero(self.sieve[(upper >> np.uint64(3)).astype(np.int64)] & _bit(upper))
    at = np.minimum(np.searchsorted(self.hashes, hashes[maybe]), len(self.hashes) - 1)
    known = self.hashes[at] == hashes[maybe]
    return maybe[known], self.numbers[at[known]]


def _bit(upper: Hashes) -> npt.NDArray[np.uint8]:
  return np.uint8(1) << (upper & np.uint64(7)).astype(np.uint8)


def _texts(evaluation_set: EvaluationSet) -> Iterator[str]:
  path = pathlib.Path(evaluation_set.path)
  name = path.name.lower()
  if not name.endswith(_SUFFIXES):
    raise ConfigError(f"evaluation set {path} has an unknown ending; expected one of {', '.join(_SUFFIXES)}.")
  if not path.is_file():
    raise ConfigError(f"evaluation set {path} does not exist; name a file that does, as FILE or NAME=FILE.")
  try:
    data = path.read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8-sig")
    kind = name.removesuffix(".gz").rpartition(".")[2]
    # By newline alone: JSON may hold other line ends within a string.
    lines = [line for line in text.split("\n") if line.strip()]
    if kind == "txt":
      yield from lines
    elif kind == "json":
      yield from strings(json.loads(text), keys=False)
    else:
      for line in lines:
        yield from strings(json.loads(line), keys=False)
  except (ValueError, OSError, EOFError, RecursionError) as error:
    raise ConfigError(f"evaluation set {path} cannot be read ({error}); expected UTF-8 JSON, JSON lines or text.") from error
