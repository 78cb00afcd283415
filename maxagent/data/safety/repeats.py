"""Tokens that go round in a circle: found exactly, and muted, so that they weigh nothing in the loss.

Source: OLMo 2 (arXiv 2501.00656), section 3.1: 32 or more repeats of an n-gram of 1 to 13 tokens cause spikes of the loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maxagent.data.document import Document
from maxagent.traces.schema import Flag

LONGEST = 13
REPEATS = 32


def repeated(ids: npt.NDArray[np.integer], *, longest: int = LONGEST, repeats: int = REPEATS) -> npt.NDArray[np.bool_]:
  """[n] whether a token lies in a run of `repeats` or more consecutive copies of the same 1- to `longest`-gram.

  Any rotation of a repeated n-gram is one too, so the partial copy at a run's end counts from its first token on.

  Example, repeats = 2: ids [7, 1, 2, 1, 2] give [no, yes, yes, yes, yes].
  """
  mask = np.zeros(len(ids), np.bool_)
  for n in range(1, min(longest, len(ids) // repeats) + 1):
    least = n * (repeats - 1)  # equal neighbours at distance n that make `repeats` copies
    if not _may_repeat(ids, n, least):
      continue
    for start, stop in _runs(ids[n:] == ids[:-n], least):
      mask[start : stop + n] = True
  return mask


def mute_repeats(document: Document, *, longest: int = LONGEST, repeats: int = REPEATS) -> Document:
  """The document with the flag MUTED on its repeated tokens.

  Example, repeats = 2: ids [7, 1, 2, 1, 2] get flags [0, MUTED, MUTED, MUTED, MUTED].
  """
  return mute_all([document], longest=longest, repeats=repeats)[0]


def mute_all(documents: Sequence[Document], *, longest: int = LONGEST, repeats: int = REPEATS) -> list[Document]:
  """`mute_repeats` of each, at once: a document of a few hundred tokens costs less than the calls for it would."""
  if not documents:
    return []
  # A different negative number between any two: no run of equal neighbours goes past one (it is longer than n).
  fences = -np.arange(1, len(documents) + 1, dtype=np.int32)
  ids = np.concatenate([part for d, fence in zip(documents, fences, strict=True) for part in (d.ids, [fence])])
  mask = repeated(ids, longest=longest, repeats=repeats)
  if not mask.any():
    return list(documents)
  stops = np.cumsum([len(document) + 1 for document in documents])
  masks = [mask[stop - len(d) - 1 : stop - 1] for d, stop in zip(documents, stops, strict=True)]
  return [_mute(document, found) if found.any() else document for document, found in zip(documents, masks, strict=True)]


def _mute(document: Document, mask: npt.NDArray[np.bool_]) -> Document:
  return dataclasses.replace(document, flags=np.where(mask, document.flags | np.uint8(Flag.MUTED), document.flags))


def _may_repeat(ids: npt.NDArray[np.integer], n: int, least: int) -> bool:
  """Whether ids can have `least` equal neighbours in a row at distance n: by a coarse grid, mostly no."""
  step = least // 4
  if step < 2:
    return True
  grid = ids[n::step] == ids[:-n:step]
  return bool((grid[3:] & grid[2:-1] & grid[1:-2] & grid[:-3]).any())


def _runs(same: npt.NDArray[np.bool_], least: int) -> list[tuple[int, int]]:
  """(start, stop) of every run of at least `least` trues."""
  edges = np.flatnonzero(np.diff(same.view(np.int8), prepend=np.int8(0), append=np.int8(0)))
  starts, stops = edges[::2], edges[1::2]
  long = stops - starts >= least
  return list(zip(starts[long].tolist(), stops[long].tolist(), strict=True))
