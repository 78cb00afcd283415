"""A sentencepiece model with one block of reserved tokens, and an exact inverse of its encoding."""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence

import sentencepiece
import xxhash

from maxagent.errors import TokenizerError
from maxagent.traces.schema import RESERVED

# Sentencepiece writes a space as this character; a text that holds it must go in as bytes or it would come back as a space.
SPACE_MARK = "\u2581"
_SPACE_MARK_BYTES = SPACE_MARK.encode()
_CURE = "Train one with `maxagent data tokenizer`."
_PROBE = " \n\t two  spaces\x00\u00e9\u4e2d\U0001f600 "


def spelled(name: str) -> str:
  """How a reserved name is printed: `call` as `<|call|>`."""
  return f"<|{name}|>"


_SPELLING = re.compile("|".join(re.escape(spelled(name)) for name in RESERVED))
_BORDER = re.compile("[^ ] ")
_PART_CHARACTERS = 800


class Tokenizer:
  """Text to ids and back. Reserved tokens enter by `id` only: no text, whatever it spells, encodes to one."""

  def __init__(self, model: bytes, *, origin: str = "given as bytes") -> None:
    """Takes the bytes of a model file; `origin` names it in errors."""
    self._model = model
    self._origin = origin
    self._processor = _open(model, origin)
    self._first_reserved = _reserved_block(self._processor, origin)
    self._byte_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    self._check_exactness()

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
    """Reads a model file.

    Raises:
      TokenizerError: it is absent, damaged, or was not trained by maxagent.
    """
    try:
      model = pathlib.Path(path).read_bytes()
    except OSError as error:
      where = "" if os.path.isabs(path) else f" from {os.getcwd()}"
      raise TokenizerError(f"tokenizer {os.fspath(path)!r} cannot be read{where} ({error.strerror}). {_CURE}") from error
    return cls(model, origin=os.fspath(path))

  def __reduce__(self) -> tuple[Callable[[bytes], Tokenizer], tuple[bytes]]:
    return Tokenizer, (self._model,)

  @property
  def vocab_size(self) -> int:
    """How many ids there are, reserved and byte ids included."""
    return int(self._processor.get_piece_size())

  @functools.cached_property
  def digest(self) -> str:
    """xxh3-128 of the model file, in hex: shards and checkpoints name their tokenizer by it."""
    return xxhash.xxh3_128_hexdigest(self._model)

  @functools.cached_property
  def pad_id(self) -> int:
    """The id of `<|pad|>`."""
    return self.id("pad")

  @functools.cached_property
  def bos_id(self) -> int:
    """The id of `<|bos|>`."""
    return self.id("bos")

  @functools.cached_property
  def eos_id(self) -> int:
    """The id of `<|eos|>`."""
    return self.id("eos")

  @functools.cached_property
  def end_id(self) -> int:
    """The id of `<|end|>`, which closes a segment."""
    return self.id("end")

  def id(self, name: str) -> int:
    """The id of a reserved name, written without brackets."""
    try:
      return self._first_reserved + RESERVED.index(name)
    except ValueError:
      raise TokenizerError(f"{name!r} is no reserved name; expected one of {', '.join(RESERVED)}.") from None

  def reserved_name(self, token: int) -> str | None:
    """The reserved name of an id, or None for an ordinary token."""
    slot = token - self._first_reserved
    return RESERVED[slot] if 0 <= slot < len(RESERVED) else None

  def encode(self, text: str) -> list[int]:
    """The ids of a text; never a reserved one.

    Raises:
      TokenizerError: the text holds a lone surrogate, which is no Unicode character.
    """
    if SPACE_MARK in text:
      return self._encode_around_space_marks(text)
    try:
      ids: list[int] = self._processor.encode(text)
    except RuntimeError as error:
      raise _unencodable(text) from error
    return ids

  def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[list[int]]:
    """`encode` of each text, on all cores unless `threads` are named; texts are cut where no piece can reach across (1.5 times
    as fast as whole ones)."""
    parts = [[] if SPACE_MARK in text else _cut(text) for text in texts]
    try:
      rows = iter(self._processor.encode([part for cut in parts for part in cut], num_threads=threads or -1))
    except (RuntimeError, TypeError) as error:
      raise _unencodable(*texts) from error
    joined = [list(itertools.chain.from_iterable(itertools.islice(rows, len(cut)))) for cut in parts]
    return [self.encode(text) if SPACE_MARK in text else row for text, row in zip(texts, joined, strict=True)]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids: the exact inverse of `encode`, with reserved ids printed as `<|name|>`.

    Bytes that are no UTF-8, which only a model can write, become U+FFFD.
    """
    try:
      return b"".join([self._printed[token] for token in ids]).decode("utf-8", errors="replace")
    except KeyError as error:
      raise TokenizerError(f"token id is {error}; expected 0 to {self.vocab_size - 1} with tokenizer {self._origin}.") from None

  def count_reserved_spellings(self, text: str) -> int:
    """How often a text spells a reserved token, such as `<|call|>`; it is encoded as ordinary text all the same."""
    return len(_SPELLING.findall(text)) if "<|" in text else 0

  def _encode_around_space_marks(self, text: str) -> list[int]:
    mark = [self._byte_ids[byte] for byte in _SPACE_MARK_BYTES]
    first, *rest = text.split(SPACE_MARK)
    ids = self.encode(first)
    for part in rest:
      ids += mark + self.encode(part)
    return ids

  @functools.cached_property
  def _printed(self) -> dict[int, bytes]:
    texts = self._processor.id_to_piece(list(range(self.vocab_size)))
    table = {token: piece.replace(SPACE_MARK, " ").encode() for token, piece in enumerate(texts)}
    table[self._processor.unk_id()] = "\ufffd".encode()
    table |= {token: bytes([byte]) for byte, token in enumerate(self._byte_ids)}
    return table | {self.id(name): spelled(name).encode() for name in RESERVED}

  def _check_exactness(self) -> None:
    # A model with another normalisation or without byte fallback loads well and then changes the text it encodes.
    if self.decode(self.encode(_PROBE)) != _PROBE:
      raise TokenizerError(f"tokenizer {self._origin} does not give text back as it was. {_CURE}")


def _cut(text: str) -> list[str]:
  """A text in parts whose ids, one after the other, are those of the whole: after any other sign a space opens a new piece."""
  parts, start = [], 0
  while start < len(text):
    border = _BORDER.search(text, start + _PART_CHARACTERS)
    stop = border.start() + 1 if border else len(text)
    parts.append(text[start:stop])
    start = stop
  return parts


def _open(model: bytes, origin: str) -> sentencepiece.SentencePieceProcessor:
  # An empty file would otherwise open as a processor without a model.
  if not model:
    raise TokenizerError(f"tokenizer {origin} is empty; expected a sentencepiece model. {_CURE}")
  try:
    return sentencepiece.SentencePieceProcessor(model_proto=model)
  except RuntimeError as error:
    raise TokenizerError(f"tokenizer {origin} is damaged or no sentencepiece model ({error}). {_CURE}") from error


def _reserved_block(processor: sentencepiece.SentencePieceProcessor, origin: str) -> int:
  first: int = processor.piece_to_id(spelled(RESERVED[0]))
  for slot, name in enumerate(RESERVED):
    token = processor.piece_to_id(spelled(name))
    if token != first + slot or not processor.is_control(token):
      raise TokenizerError(f"tokenizer {origin} lacks {spelled(name)} in a block of {len(RESERVED)} control symbols. {_CURE}")
  return first


def _unencodable(*texts: str) -> TokenizerError:
  for text in texts:
    try:
      text.encode()
    except UnicodeEncodeError as error:
      bad = f"U+{ord(text[error.start]):04X} at character {error.start}"
      return TokenizerError(f"text holds the lone surrogate {bad}; expected Unicode. Decode bytes with errors='replace'.")
  return TokenizerError("sentencepiece refused a text; expected strings.")
