"""From batches and shards to the plain records that the page and the terminal show."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from maxagent.data.batch import Batch
from maxagent.data.document import Document as Stored
from maxagent.objectives.weights import token_weights
from maxagent.tokenizer import Tokenizer
from maxagent.traces.schema import Flag, Role, Status
from maxagent.tracking.rows import Document, Row, Tally, Token

_MOST_BYTES = 4  # of a character in UTF-8
_UNKNOWN = "\ufffd"


def batch_rows(batch: Batch, weights: npt.NDArray[Any], sources: Sequence[str], tokenizer: Tokenizer, count: int) -> list[Row]:
  """The first `count` rows of a batch. What is known of token i stands beside target i - 1."""
  rows = []
  for number in range(min(count, len(batch.tokens))):
    segments = batch.segments[number]
    borders = np.flatnonzero(np.diff(segments, prepend=0, append=0))
    spans = [(a, b) for a, b in itertools.pairwise(borders.tolist()) if segments[a]]
    documents = [_batch_document(batch, number, span, weights, sources, tokenizer) for span in spans]
    rows.append(Row(title=f"Row {number}", documents=tuple(documents), padding=int(np.sum(segments == 0))))
  return rows


def _batch_document(
  batch: Batch, row: int, span: tuple[int, int], weights: npt.NDArray[Any], sources: Sequence[str], tokenizer: Tokenizer
) -> Document:
  start, stop = span
  beyond = batch.roles[row][stop - 1] != Role.PAD  # the last target of a row whose document goes on
  ids = [*batch.tokens[row][start:stop].tolist(), *([int(batch.targets[row][stop - 1])] if beyond else [])]
  known = slice(start, start + len(ids) - 1)
  columns = (batch.roles[row][known], batch.statuses[row][known], batch.flags[row][known], weights[row][known])
  tokens = _tokens(ids, columns, int(batch.positions[row][start]), tokenizer)
  if beyond:
    tokens[-1] = dataclasses.replace(tokens[-1], beyond=True)
  return Document(source=sources[int(batch.sources[row][start])], segment=int(batch.segments[row][start]), tokens=tuple(tokens))


def stored_document(stored: Stored, weights: npt.NDArray[Any], source: str, tokenizer: Tokenizer) -> Document:
  """A document as the shards hold it; `weights` are those of its tokens, [n]."""
  columns = (stored.roles[1:], stored.statuses[1:], stored.flags[1:], weights[1:])
  return Document(source=source, segment=1, tokens=tuple(_tokens(stored.ids.tolist(), columns, 0, tokenizer)))


def _tokens(ids: Sequence[int], columns: Sequence[Any], position: int, tokenizer: Tokenizer) -> list[Token]:
  """The tokens, of which `columns` (roles, statuses, flags, weights) describe all but the first."""
  texts = pieces(tokenizer, ids)
  reserved = [tokenizer.reserved_name(token) for token in ids]
  first = Token(id=ids[0], piece=texts[0], reserved=reserved[0], position=position)
  others = [
    Token(
      id=token, piece=text, reserved=name, role=Role(role).name.lower(), status=Status(status).name.lower(),
      flags=tuple(str(flag.name).lower() for flag in Flag if flag & flags), weight=float(weight), position=position + 1 + n,
    )
    for n, (token, text, name, role, status, flags, weight) in enumerate(
      zip(ids[1:], texts[1:], reserved[1:], *(column.tolist() for column in columns), strict=True)
    )
  ]  # fmt: skip
  return [first, *others]


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
  """What each token adds to the text; a character of several byte tokens stands at the last of them.

  Example: [`a`, byte C3, byte A9] gives [`a`, ``, `é`].
  """
  texts = [tokenizer.decode([token]) for token in ids]
  i = 0
  while i < len(texts):
    if texts[i] == _UNKNOWN:
      for stop in range(min(i + _MOST_BYTES, len(texts)), i + 1, -1):
        whole = tokenizer.decode(ids[i:stop])
        if len(whole) == 1:
          texts[i:stop] = [*[""] * (stop - i - 1), whole]
          i = stop - 1
          break
    i += 1
  return texts


def target_weights(roles: Any, statuses: Any, flags: Any, table: Any) -> npt.NDArray[Any]:
  """The weight of each target, [B, T]."""
  return np.asarray(token_weights(jnp.asarray(roles), jnp.asarray(statuses), jnp.asarray(flags), table))


def batch_tallies(batch: Batch, weights: npt.NDArray[Any], sources: Sequence[str]) -> list[Tally]:
  """The targets of the whole batch by source and role."""
  tallies = []
  for number, source in enumerate(sources):
    for role in Role:
      here = (batch.sources == number) & (batch.roles == role)
      if role != Role.PAD and here.any():
        own = weights[here]
        tallies.append(
          Tally(
            source=source, role=role.name.lower(), targets=own.size, supervised=int(np.sum(own > 0)), weight=float(own.sum())
          )
        )
  return tallies
