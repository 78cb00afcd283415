"""A vocabulary, ours or someone else's, with one block of reserved tokens."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import xxhash

from maxagent import storage
from maxagent.errors import StorageError, TokenizerError
from maxagent.tokenizer.vocabulary import CURE, Vocabulary, spelled, unencodable
from maxagent.traces.schema import RESERVED

# What encoders are known to lose, each by a text that shows it.
_PROBES = {
  "letter case": "aB",
  "accents and compatible characters": "e\u0301 \u00e9 \ufb01",
  "runs of white space": "a  b\t\tc\n\n",
  "white space at the ends": " a ",
  "control characters": "a\x00b\x07",
  "the character U+2581": "a\u2581b",
  "some characters": "\U0001f600 \u4e2d \ua66e",
}


class Tokenizer:
  """Text to ids and back. Reserved tokens enter by `id` only: no text, whatever it spells, encodes to one.

  Three kinds of file: a sentencepiece model that maxagent trained, which has the reserved block among its pieces; any other
  sentencepiece model; a Hugging Face tokenizer.json. To the last two the block is appended, as the last ids. Whatever else a
  foreign vocabulary holds for control, its own bos and eos too, is never produced: text that spells it is text.
  """

  def __init__(self, model: bytes, *, origin: str = "given as bytes") -> None:
    """Takes the bytes of a tokenizer file; `origin` names it in errors."""
    self._model = model
    self._origin = origin
    self._vocabulary = _open(model, origin)
    own = self._vocabulary.first_reserved
    self._appended = own is None
    self._first_reserved = self._vocabulary.size if own is None else own
    self._require_no_silent_loss()

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
    """Reads a tokenizer file, local or in a bucket; warns of what a foreign one loses of a text.

    Raises:
      TokenizerError: it is absent, damaged, or drops text without a sign.
      StorageError: the bucket cannot be reached.
    """
    try:
      model = storage.read_bytes(path)
    except OSError as error:
      where = "" if os.path.isabs(path) else f" from {os.getcwd()}"
      raise TokenizerError(f"tokenizer {os.fspath(path)!r} cannot be read{where} ({error.strerror}). {CURE}") from error
    except StorageError as error:
      raise StorageError(f"tokenizer: {error}") from error
    tokenizer = cls(model, origin=os.fspath(path))
    if tokenizer.losses:
      logging.getLogger(__name__).warning(
        "tokenizer %s loses text, and so will the model: %s. Byte-level ones, and those that maxagent trains, lose nothing.",
        path, "; ".join(tokenizer.losses),
      )  # fmt: skip
    return tokenizer

  def __reduce__(self) -> tuple[Callable[[bytes], Tokenizer], tuple[bytes]]:
    return Tokenizer, (self._model,)

  @property
  def vocab_size(self) -> int:
    """How many ids there are, reserved and byte ids included."""
    return self._vocabulary.size + (len(RESERVED) if self._appended else 0)

  @functools.cached_property
  def digest(self) -> str:
    """xxh3-128 of the file and of an appended block, in hex: shards and checkpoints name their tokenizer by it."""
    block = "".join(map(spelled, RESERVED)).encode() if self._appended else b""
    return xxhash.xxh3_128_hexdigest(self._model + block)

  @functools.cached_property
  def losses(self) -> tuple[str, ...]:
    """What does not come back as it was, each with an example; empty for an exact tokenizer."""
    found: dict[str, str] = {}
    for name, text in _PROBES.items():
      back = self.decode(self.encode(text))
      name = "characters that it has no token for" if "\ufffd" in back else name
      if back != text:
        found.setdefault(name, f"{name} ({text!r} comes back as {back!r})")
    return tuple(found.values())

  @property
  def unknown_id(self) -> int | None:
    """The id that stands for characters without a token, if there is one."""
    return self._vocabulary.unknown_id

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
    try:
      return self._vocabulary.encode(text)
    except (RuntimeError, TypeError) as error:
      raise unencodable(text) from error

  def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[list[int]]:
    """`encode` of each text; on all cores, unless `threads` says on how many."""
    try:
      return self._vocabulary.encode_batch(texts, threads=threads)
    except (RuntimeError, TypeError) as error:
      raise unencodable(*texts) from error

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids, with reserved ids printed as `<|name|>`: the exact inverse of `encode`, less `losses`.

    Bytes that are no UTF-8, which only a model can write, become U+FFFD, and so do unknown characters.
    """
    parts: list[str] = []
    for name, run in itertools.groupby(ids, self.reserved_name):
      tokens = list(run)
      outside = [token for token in tokens if not 0 <= token < self.vocab_size]
      if outside:
        raise TokenizerError(f"token id is {outside[0]}; expected 0 to {self.vocab_size - 1} with tokenizer {self._origin}.")
      parts.append(self._vocabulary.decode(tokens) if name is None else spelled(name) * len(tokens))
    return "".join(parts)

  def count_reserved_spellings(self, text: str) -> int:
    """How often a text spells a token of control, reserved or the vocabulary's own; it is ordinary text all the same."""
    return len(self._spelling.findall(text))

  @functools.cached_property
  def _spelling(self) -> re.Pattern[str]:
    names = {*map(spelled, RESERVED), *self._vocabulary.controls.values()}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))

  def _require_no_silent_loss(self) -> None:
    if not self._appended and self.losses:
      # A model of ours with another normalisation or without byte fallback loads well and then changes the text it encodes.
      raise TokenizerError(f"tokenizer {self._origin} does not give text back as it was: {self.losses[0]}. {CURE}")
    dropped = [character for character in _every_byte() if self._drops(character)]
    if dropped:
      raise TokenizerError(
        f"tokenizer {self._origin} drops characters such as {dropped[0]!r} without a sign; expected an id for every byte, "
        f"or an unknown token. Train it with the whole byte alphabet, byte fallback or an unknown token. {CURE}"
      )

  def _drops(self, character: str) -> bool:
    ids = self.encode(character)
    if self.unknown_id in ids:
      return False  # counted when data is built
    back = self.decode(ids)
    return not back.strip() or "\ufffd" in back


def _open(model: bytes, origin: str) -> Vocabulary:
  # An empty file would otherwise open as a processor without a model.
  if not model:
    raise TokenizerError(f"tokenizer {origin} is empty; expected a sentencepiece model or a tokenizer.json. {CURE}")
  if model.lstrip()[:1] == b"{":
    from maxagent.tokenizer.hugging_face import HuggingFace

    return HuggingFace(model, origin)
  from maxagent.tokenizer.pieces import Pieces

  return Pieces(model, origin)


@functools.cache
def _every_byte() -> tuple[str, ...]:
  """Characters that hold, among them, each byte of UTF-8 that a letter, digit, sign or symbol can hold.

  A byte without a token would be dropped, and nothing would tell of it. Marks and formats are no part: an encoder may mean it.
  """
  blocks = (*((code,) for code in range(0x21, 0x100)), *(range(code, code + 64) for code in range(0x100, 0x800, 64)))
  high = (range(code, min(code + 0x1000, 0xD800)) for code in range(0x800, 0xD800, 0x1000))
  found = (next((c for c in map(chr, block) if unicodedata.category(c)[0] in "LNPS"), "") for block in (*blocks, *high))
  return tuple(character for character in (*found, "\uff01", "\U0001f600") if character)
