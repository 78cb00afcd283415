"""Near-duplicates in a stream: MinHash signatures of word 5-grams in an LSH index (the library rensa, in Rust).

Sources: Broder, "On the resemblance and containment of documents" (1997); for training data Lee et al. (arXiv 2107.06499).
"""

from __future__ import annotations

import math

import rensa

from maxagent.data.safety.words import Words, ngrams
from maxagent.errors import ConfigError

SHINGLE_WORDS = 5
# The standard error of an estimated similarity of 0.8 is sqrt(0.8 * 0.2 / 128) = 0.035.
SIGNATURE = 128
_SEED = 1
_FOUND = 0.94  # of the pairs exactly at the threshold, the share that the index is to propose


class NearDuplicates:
  """Remembers documents; says whether one was seen before, but for a few words.

  What the threshold means: of a text of which each word is changed with chance q, (1 - q)**5 of the 5-grams remain, so the
  similarity is s / (2 - s) with s = (1 - q)**5: 0.82 at 2%, 0.63 at 5%. Changes that stand together cost far less.

  Memory, measured: 2.2 kB a document at a threshold of 0.8, so 2.2 GB for a million, and 3.5 kB at 0.6 and 0.7.

  Example, 2-word shingles: `a b c d` and `a b c e` share (a b), (b c) of four kinds: similarity 0.5.
  """

  def __init__(self, threshold: float = 0.8) -> None:
    if not 0 < threshold <= 1:
      raise ConfigError(f"near_duplicates is {threshold}; it is a Jaccard similarity, so above 0 and at most 1 (None: off).")
    self._index = rensa.RMinHashDeduplicator(
      threshold=threshold, num_perm=SIGNATURE, use_lsh=True, num_bands=_bands(threshold), seed=_SEED
    )

  def __len__(self) -> int:
    return int(self._index.len())

  def find(self, signed: bytes, key: str) -> str | None:
    """The key of an earlier document that is nearly the same, or None, and then this one is remembered under its key.

    `signed` is its `signature`; one without words is like no other.
    """
    if not signed:
      return None
    minhash = rensa.RMinHash(num_perm=SIGNATURE, seed=_SEED)
    minhash.__setstate__(signed)
    # The library names candidates in no order and replaces equal keys: numbers make them differ, and the first is named.
    if found := self._index.get_duplicates(minhash):
      return str(min(found)).partition(" ")[2]
    self._index.add(f"{len(self):012} {key}", minhash)
    return None


def signature(words: Words) -> bytes:
  """What near-duplicates are found by, some 670 bytes; empty where there are no words."""
  if not len(words):
    return b""
  # A text of fewer words than a shingle has one shingle: itself.
  shingles = ngrams(words.hashes, min(SHINGLE_WORDS, len(words)))
  minhash = rensa.RMinHash(num_perm=SIGNATURE, seed=_SEED)
  minhash.update(shingles.astype("<u8", copy=False).view("V8").tolist())
  return bytes(minhash.__getstate__())


def _bands(threshold: float) -> int:
  """The fewest bands of a signature that propose a pair at the threshold with chance _FOUND: less memory, fewer candidates."""
  for rows in (16, 8, 4, 2):
    bands = SIGNATURE // rows
    if 1 - math.pow(1 - threshold**rows, bands) >= _FOUND:
      return bands
  return SIGNATURE
