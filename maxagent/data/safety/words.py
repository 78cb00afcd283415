"""Words and word n-grams as 64-bit hashes, by NumPy: what near-duplicates and decontamination compare.

A word's hash is the sum over its bytes of byte_table[byte] * position_table[position] modulo 2**64, mixed by splitmix64's
finaliser; an n-gram's is the same over its words. The tables are fixed, so hashes are the same on every machine.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import string
import unicodedata

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_ASCII_SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f"
_TO_SPACE = bytes.maketrans(_ASCII_SPACES.encode(), b" " * len(_ASCII_SPACES))
_DELETED = string.punctuation.encode() + bytes(c for c in (*range(32), 127) if chr(c) not in _ASCII_SPACES)
_OTHER_PUNCTUATION = re.compile(r"[^\w\s\x00-\x7f]+")
# Written without spaces, so each character is a word: a run of 13 words of such a text would be 13 clauses.
_IDEOGRAPHS = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_POSITIONS = 4096  # of a byte within its word, then again from 0
_SPACE = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Words:
  """The words of a text: [n] hashes, and where each begins in the normalised bytes."""

  data: bytes
  starts: npt.NDArray[np.int64]
  hashes: Hashes

  def __len__(self) -> int:
    return len(self.hashes)

  def show(self, first: int, count: int) -> str:
    """Some of them, as text."""
    stop = self.starts[first + count] if first + count < len(self) else len(self.data)
    return self.data[self.starts[first] : stop].decode("utf-8", "replace").strip()


def normalise(text: str) -> bytes:
  """Lower-case words without punctuation, as UTF-8 with spaces between.

  Source: GPT-3 (arXiv 2005.14165), appendix C. Unicode is compatibility-composed first (NFKC), and Chinese characters and
  kana are words of their own.

  Example: `Don't -- stop; "it's" FINE!` gives `dont  stop its fine`.
  """
  if not text.isascii():
    text = _OTHER_PUNCTUATION.sub("", unicodedata.normalize("NFKC", text))
    text = " ".join(_IDEOGRAPHS.sub(r" \g<0> ", text).split())
  return text.lower().encode("utf-8", "surrogatepass").translate(_TO_SPACE, _DELETED)


def words(text: str) -> Words:
  """The words of a text. Example: `A robe, a ROBE.` has 4 words, of which hashes 0 and 2 are equal, and 1 and 3."""
  data = normalise(text)
  array = np.frombuffer(data, np.uint8)
  inside = array != _SPACE
  starts = np.flatnonzero(inside & ~np.concatenate([[False], inside[:-1]])).astype(np.int64)
  if not len(starts):
    return Words(data, starts, np.zeros(0, np.uint64))
  array = array[starts[0] :]
  byte_table, position_table = _tables()
  offsets = starts - starts[0]
  positions = np.arange(len(array)) - np.repeat(offsets, np.diff(offsets, append=len(array)))
  # The table has 0 for a space, so the spaces after a word add nothing to it.
  terms = byte_table[array] * position_table[positions & (_POSITIONS - 1)]
  return Words(data, starts, _mix(np.add.reduceat(terms, offsets)))


def ngrams(hashes: Hashes, n: int) -> Hashes:
  """[max(0, words - n + 1)] hashes of every run of n words.

  Example, n = 2: the hashes of words [a, b, c, a, b] give 4, of which those of (a, b), the first and the last, are equal.
  """
  count = len(hashes) - n + 1
  if count <= 0:
    return np.zeros(0, np.uint64)
  weights = _tables()[1]
  total = np.zeros(count, np.uint64)
  for place in range(n):
    total += hashes[place : place + count] * weights[place]
  return _mix(total)


@functools.cache
def _tables() -> tuple[Hashes, Hashes]:
  values = _mix(np.arange(1, 257 + _POSITIONS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
  byte_table = values[:256].copy()
  byte_table[_SPACE] = 0
  return byte_table, values[256:] | np.uint64(1)


def _mix(x: Hashes) -> Hashes:
  # Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014), the finaliser of splitmix64.
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
