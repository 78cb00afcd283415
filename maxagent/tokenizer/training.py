"""Training a tokenizer on a bounded, deterministic sample of texts."""

from __future__ import annotations

import collections
import io
import os
import pathlib
import re
from collections.abc import Iterable, Iterator

import sentencepiece
import xxhash

from maxagent.errors import TokenizerError
from maxagent.tokenizer.model import Tokenizer
from maxagent.tokenizer.pieces import SPACE_MARK
from maxagent.tokenizer.vocabulary import spelled
from maxagent.traces.schema import RESERVED

SMALLEST_VOCAB = 256 + len(RESERVED) + 2  # the bytes, the reserved block, the unknown token and one learned piece
# Sentencepiece skips a sentence that is longer than 4192 bytes; a character has at most 4 bytes in UTF-8.
_PIECE_CHARACTERS = 1000
_COVERAGE = 0.9995  # of characters; rarer ones are spelled in bytes
# Sentencepiece drops a sentence with U+2585 or NUL, learns no piece with a tab and takes U+2581 for a space.
_UNLEARNABLE = "\x00\t\u2585" + SPACE_MARK


def train(
  texts: Iterable[str],
  output: str | os.PathLike[str],
  *,
  vocab_size: int,
  at_most: bool = False,
  seed_sentence_bytes: int = 16_000_000,
) -> Tokenizer:
  """Learns byte-pair merges and writes the model file; the same texts give the same bytes.

  Args:
    texts: documents; they are read once.
    output: the file to write; its folder is made.
    vocab_size: exactly how many ids the tokenizer has.
    at_most: it may have less, where the texts give less.
    seed_sentence_bytes: learn from at most this much of the texts, chosen by hash.

  Raises:
    TokenizerError: `vocab_size` is too small for bytes and reserved names, or too large for the texts.
  """
  if vocab_size < SMALLEST_VOCAB:
    raise TokenizerError(f"vocab_size is {vocab_size}; expected at least {SMALLEST_VOCAB} for bytes and reserved tokens.")
  sample = _sample(texts, seed_sentence_bytes)
  model = _learn(_learnable(sample, (vocab_size - SMALLEST_VOCAB) // 2 + 1, _COVERAGE), vocab_size)
  if Tokenizer(model).vocab_size < vocab_size:
    # Little text: give every character an id before saying that there is too little.
    model = _learn(_learnable(sample, vocab_size - SMALLEST_VOCAB + 1, 1.0), vocab_size)
  tokenizer = Tokenizer(model, origin=os.fspath(output))
  if tokenizer.vocab_size != vocab_size and not at_most:
    largest = tokenizer.vocab_size
    raise TokenizerError(
      f"vocab_size is {vocab_size}; the texts give at most {largest}. Ask for less (--vocab-size) or add text."
    )
  _write(pathlib.Path(output), model)
  return tokenizer


def _sample(texts: Iterable[str], byte_cap: int) -> list[str]:
  """Pieces of the texts, in order; over the cap, those with the lowest hashes, so that no part of the corpus is favoured."""
  kept: list[tuple[int, str, int]] = []
  size, limit = 0, 1 << 64
  for piece in _pieces(texts):
    encoded = piece.encode("utf-8", errors="replace")
    order = xxhash.xxh3_64_intdigest(encoded)
    if order < limit:
      kept.append((order, piece, len(encoded)))
      size += len(encoded)
    while size > byte_cap and len(kept) > 1:
      limit //= 2
      kept = [item for item in kept if item[0] < limit]
      size = sum(item[2] for item in kept)
  return [piece for _, piece, _ in kept]


def _pieces(texts: Iterable[str]) -> Iterator[str]:
  """Texts cut to what sentencepiece accepts, at line ends where there are any; no character is lost.

  Example, at most 6 characters a piece: `ab\\ncd\\nefg` gives [`ab\\ncd\\n`, `efg`].
  """
  for text in texts:
    start = 0
    while start < len(text):
      stop = start + _PIECE_CHARACTERS
      if stop < len(text):
        stop = (text.rfind("\n", start, stop) + 1) or stop
      yield text[start:stop]
      start = stop


def _learnable(sample: list[str], most: int, coverage: float) -> list[str]:
  """The sample, cut at characters that sentencepiece cannot learn or that are too rare to have an id of their own.

  At most `most` characters get an id: in a text of many scripts they would take all ids, and no merge would be learned.
  """
  counts = collections.Counter[str]()
  for piece in sample:
    counts.update(piece)
  if not counts:
    raise TokenizerError("the texts to train a tokenizer on are empty; expected documents. Check the inputs.")
  rare = re.compile("[" + re.escape("".join(_too_rare(counts, most, coverage)) + _UNLEARNABLE) + "\ud800-\udfff]+")
  # A space alone: sentencepiece refuses to train on nothing, and this teaches it nothing.
  return [part for piece in sample for part in rare.split(piece) if part] or [" "]


def _too_rare(counts: collections.Counter[str], most: int, coverage: float) -> list[str]:
  counts[" "] += 1  # the space has an id in any case, see `_learn`
  ranked = sorted(counts, key=lambda character: (character != " ", -counts[character], character))
  needed, covered = coverage * counts.total(), 0
  for rank, character in enumerate(ranked):
    if rank == most or covered >= needed:
      return ranked[rank:]
    covered += counts[character]
  return []


def _learn(sentences: list[str], vocab_size: int) -> bytes:
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sentences),
      model_writer=model,
      model_type="bpe",
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      character_coverage=1.0,
      required_chars=SPACE_MARK,  # a space without an id would be spelled in this mark's bytes and come back as the mark
      byte_fallback=True,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      split_digits=True,
      # Never a piece of letters and punctuation: so no piece can spell a reserved token either.
      split_by_unicode_script=True,
      allow_whitespace_only_pieces=True,
      control_symbols=[spelled(name) for name in RESERVED],
      unk_id=0,
      bos_id=-1,
      eos_id=-1,
      pad_id=-1,
      num_threads=2,  # written into the model: a count taken from the machine would change the digest
      minloglevel=2,
    )
  except RuntimeError as error:
    raise TokenizerError(f"sentencepiece cannot train on these texts ({error}). Give it more text.") from error
  return model.getvalue()


def _write(path: pathlib.Path, model: bytes) -> None:
  """Whole or not at all: a killed run leaves no half tokenizer."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + ".partial")
  partial.write_bytes(model)
  partial.replace(path)
