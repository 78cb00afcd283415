"""What every kind of vocabulary can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from maxagent.errors import TokenizerError

CURE = "Train one with `maxagent data tokenizer`."


class Vocabulary(Protocol):
  """A tokenizer's own ids, 0 to `size`, without a reserved block that is appended to them."""

  size: int
  first_reserved: int | None  # where the reserved block begins, of a vocabulary that has one
  unknown_id: int | None  # what it writes for characters that it has no token for

  @property
  def controls(self) -> Mapping[int, str]:
    """Its own control tokens as text spells them; no text encodes to one."""
    ...

  def encode(self, text: str) -> list[int]:
    """Ids of a text; RuntimeError or TypeError for what is no Unicode."""
    ...

  def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[list[int]]:
    """`encode` of each, on all cores or as many threads."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """The text of one encoded text; control tokens are spelled out."""
    ...


def spelled(name: str) -> str:
  """How a reserved name is printed: `call` as `<|call|>`."""
  return f"<|{name}|>"


def unencodable(*texts: str) -> TokenizerError:
  """The error for texts that an encoder refused: it names the first lone surrogate and its place."""
  for text in texts:
    try:
      text.encode()
    except UnicodeEncodeError as error:
      bad = f"U+{ord(text[error.start]):04X} at character {error.start}"
      return TokenizerError(f"text holds the lone surrogate {bad}; expected Unicode. Decode bytes with errors='replace'.")
  return TokenizerError("the tokenizer refused a text; expected strings.")
