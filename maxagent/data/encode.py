"""Text and typed traces to documents of token ids."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from maxagent.data.document import Document
from maxagent.tokenizer import Tokenizer
from maxagent.traces.render import Piece, render
from maxagent.traces.schema import Flag, Role, Status, Trace


def encode_text(text: str, tokenizer: Tokenizer) -> Document:
  """One document of plain text: `<|bos|>` text `<|eos|>`, roles MARKER, WEB ..., MARKER."""
  return encode_texts([text], tokenizer)[0]


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer, *, threads: int | None = None) -> list[Document]:
  """`encode_text` of each, with one call of the tokenizer."""
  return [text_document(ids, tokenizer) for ids in tokenizer.encode_batch(texts, threads=threads)]


def encode_pieces(pieces: Sequence[Piece], tokenizer: Tokenizer) -> Document:
  """One document of rendered pieces.

  Example, a goal `g` that is one token:
      pieces [<|goal|>, g, <|end|>] give ids [goal, g, end] and roles [GOAL, GOAL, GOAL]
  """
  return _encode_all([pieces], tokenizer, None)[0]


def encode_traces(traces: Iterable[Trace], tokenizer: Tokenizer, *, threads: int | None = None) -> list[Document]:
  """Each trace rendered and encoded, with one call of the tokenizer for all of them."""
  return _encode_all([render(trace) for trace in traces], tokenizer, threads)


def _encode_all(documents: Sequence[Sequence[Piece]], tokenizer: Tokenizer, threads: int | None) -> list[Document]:
  # A piece is a few tokens: a call of the tokenizer for each would cost more than its encoding. Traces also repeat themselves.
  texts = list(dict.fromkeys(piece.text for pieces in documents for piece in pieces if not piece.marker))
  ids = dict(zip(texts, tokenizer.encode_batch(texts, threads=threads), strict=True))
  markers = {name: [tokenizer.id(name)] for name in {p.text for pieces in documents for p in pieces if p.marker}}
  return [_document(pieces, [(markers if p.marker else ids)[p.text] for p in pieces]) for pieces in documents]


def _document(pieces: Sequence[Piece], runs: Sequence[list[int]]) -> Document:
  lengths = [len(run) for run in runs]
  types = np.array([(piece.role, piece.status, piece.flags) for piece in pieces], np.uint8).reshape(-1, 3)
  roles, statuses, flags = np.repeat(types, lengths, axis=0).T
  ids = np.fromiter(itertools.chain.from_iterable(runs), np.int32, sum(lengths))
  return Document(ids, *(np.ascontiguousarray(column) for column in (roles, statuses, flags)))


def text_document(ids: Sequence[int] | npt.NDArray[np.int32], tokenizer: Tokenizer) -> Document:
  """One document of plain text whose ids are known, as `encode_text` gives it."""
  n = len(ids) + 2
  roles = np.full(n, Role.WEB, np.uint8)
  roles[[0, -1]] = Role.MARKER
  return Document(
    np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], np.int32),
    roles,
    np.full(n, Status.NA, np.uint8),
    np.full(n, Flag(0), np.uint8),
  )
