"""A Hugging Face tokenizer.json (the `tokenizers` library) whose control tokens no text can produce.

The library finds the special tokens of a vocabulary in the text that it encodes. Telling it not to (`encode_special_tokens`) is
not enough: a unigram or a whole-word model holds them among its pieces and finds them again. So they are renamed in the file
before it is opened, to names that begin with U+10FFFF, which is no character; their ids stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from maxagent.errors import TokenizerError
from maxagent.tokenizer.vocabulary import CURE

_MARK = "\U0010ffff"
_RENAMED = re.compile(_MARK + r"(\d+);")
_UNKNOWN = "\ufffd"


class HuggingFace:
  """A tokenizer.json as a `Vocabulary`. What it would add around a text, cut off it or leave to chance is off."""

  first_reserved: int | None = None

  def __init__(self, model: bytes, origin: str) -> None:
    """Takes the bytes of a tokenizer.json; `origin` names it in errors.

    Raises:
      TokenizerError: the library is not installed, or the file is damaged.
    """
    try:
      import tokenizers
    except ModuleNotFoundError as error:
      raise TokenizerError(f"tokenizer {origin} needs the package tokenizers: pip install 'maxagent[hf]'.") from error
    try:
      record = json.loads(model)
      self.controls, self.unknown_id = _controls(record)
      self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_closed(record, self.controls)))
    except Exception as error:  # the library raises nothing more special
      raise TokenizerError(f"tokenizer {origin} is damaged or no tokenizer.json ({error}). {CURE}") from error
    self._tokenizer.encode_special_tokens = True
    self.size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
    moved = [name for token, name in self.controls.items() if self._tokenizer.id_to_token(token) != _name(token)]
    if moved:
      raise TokenizerError(f"tokenizer {origin} gives {moved[0]!r} another id than its file says. Save it again. {CURE}")

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""
    return self.encode_batch([text], threads=1)[0]

  def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[list[int]]:
    """`encode` of each, on all cores or, with `threads=1`, here; the library knows nothing between the two."""
    cuts = [_parts(text) for text in texts]
    parts = [part for cut in cuts for part in cut]
    if threads == 1:
      rows = iter([self._tokenizer.encode(part, add_special_tokens=False) for part in parts])
    else:
      rows = iter(self._tokenizer.encode_batch_fast(parts, add_special_tokens=False))
    return [[token for _ in cut for token in next(rows).ids] for cut in cuts]

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids, by the decoder of the file."""
    text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
    return text if self.controls.keys().isdisjoint(ids) else _RENAMED.sub(self._printed, text)

  def _printed(self, found: re.Match[str]) -> str:
    token = int(found[1])
    return _UNKNOWN if token == self.unknown_id else self.controls.get(token, found[0])


def _name(token: int) -> str:
  return f"{_MARK}{token};"


def _parts(text: str) -> list[str]:
  """The text, cut after each U+10FFFF, so that none of it spells a renamed token."""
  return re.findall(f"[^{_MARK}]*{_MARK}|[^{_MARK}]+", text) if _MARK in text else [text]


def _controls(record: dict[str, Any]) -> tuple[dict[int, str], int | None]:
  """Special tokens and the unknown one, by id."""
  model = record["model"]
  vocabulary: Mapping[str, int] | list[tuple[str, float]] = model["vocab"]
  controls = {token["id"]: token["content"] for token in record["added_tokens"] if token["special"]}
  if isinstance(vocabulary, list):
    unknown = model["unk_id"]
    name = None if unknown is None else vocabulary[unknown][0]
  else:
    name = model.get("unk_token")
    unknown = None if name is None else vocabulary.get(name)
  return controls | ({} if unknown is None else {unknown: name}), unknown


def _closed(record: dict[str, Any], controls: Mapping[int, str]) -> dict[str, Any]:
  """The record with its control tokens renamed, and nothing added, cut off or drawn by lot."""
  model = dict(record["model"])
  names = {text: _name(token) for token, text in controls.items()}
  if isinstance(model["vocab"], list):
    pieces = enumerate(model["vocab"])
    model["vocab"] = [[_name(token) if token in controls else piece, score] for token, (piece, score) in pieces]
  else:
    model["vocab"] = {names.get(piece, piece): token for piece, token in model["vocab"].items()}
  if model.get("unk_token") is not None:
    model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
  if "merges" in model:
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
  model |= {key: None for key in ("dropout", "alpha", "nbest_size") if key in model}
  added = [token | {"content": names.get(token["content"], token["content"])} for token in record["added_tokens"]]
  off = dict.fromkeys(("truncation", "padding", "post_processor"))
  return record | off | {"model": model, "added_tokens": added}
