"""A chunk rewritten by its recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from maxagent.config.schema import Formats
from maxagent.data.document import Document, calls, flagged, join, marker, segments
from maxagent.data.formats.recipe import Recipe
from maxagent.traces.schema import Flag, Role, Status

Span = tuple[int, int]


def rewrite(
  chunk: Document, recipe: Recipe, formats: Formats, *, first_reserved: int, fetch: Callable[[int], Document]
) -> Document:
  """The chunk as its recipe wants it; `fetch` gives the document of a record, for distractors.

  Ten tokens, a goal and a call of `get`: [bos, goal, g, end, call, get, args, k, end, eos]

      infill of the tool's name, prefix first (PSM):
          [bos, PRE, goal, g, end, call, SUF, args, k, end, MID, get, eos]          get carries HOLE
      the same, suffix first (SPM):
          [bos, PRE, SUF, args, k, end, MID, goal, g, end, call, get, eos]
      fim, from the third token to the fifth:
          [bos, PRE, goal, SUF, get, args, k, end, MID, g, end, call, eos]          g, end, call carry HOLE
      decision, with the distractor `put k`:
          [bos, goal, g, end, CHOOSE, call, put, args, k, end, call, get, args, k, end, END, call, get, args, k, end, eos]
                                                                                    the last call carries DECISION

  Two calls in ten tokens: [bos, call, get, args, end, call, put, args, end, eos]

      fake, of the second call before the first:
          [bos, call, put, args, end, BACK, END, call, get, args, end, call, put, args, end, eos]
                                                                                    BACK and END carry DECISION too

  Tokens in capitals, the candidates and the fake are added. A fake was never executed: nothing is seen between it and the
  turning back. Sources: FIM, arXiv 2207.14255 (PSM, and SPM as its joint variant); fakes, arXiv 2408.16293 (retry_weak: a later
  step's sentence, then [BACK]).
  """
  if recipe.name == "plain":
    return chunk
  if recipe.name == "decision":
    return _decision(chunk, recipe, first_reserved, fetch)
  if recipe.name == "fake":
    return _faked(chunk, recipe, first_reserved)
  order, where, second = recipe.draws
  span = _hole(chunk, formats, where, second, first_reserved) if recipe.name == "infill" else None
  span = span or _random_span(chunk, where, second, first_reserved)
  return _permuted(chunk, span, suffix_first=order < formats.suffix_first, first_reserved=first_reserved)


def holes(chunk: Document, first_reserved: int) -> dict[str, list[Span]]:
  """Where a chunk can be cut at its structure, by kind; what failed is no hole, as its fill would teach it.

  Example: [bos, goal, g, end, call, get, args, k, end, eos] gives
      {tool_name: [(5, 6)], arguments: [(7, 8)], call: [(4, 9)], plan: [], call_obs_call: []}.
  """
  parts = list(segments(chunk, first_reserved))
  right = [name == "call" and chunk.statuses[start] != Status.ERR for name, start, _ in parts]
  whole = [(start, stop) for (_, start, stop), ok in zip(parts, right, strict=True) if ok]
  args = marker(first_reserved, "args")
  inner = [(start, start + int(np.argmax(chunk.ids[start:stop] == args)), stop) for start, stop in whole]
  runs = range(len(parts) - 2)
  return {
    "tool_name": [(start + 1, at) for start, at, _ in inner if start + 1 < at],
    "arguments": [(at + 1, stop - 1) for start, at, stop in inner if start < at < stop - 2],
    "call": whole,
    "plan": [(start, stop) for name, start, stop in parts if name == "plan"],
    "call_obs_call": [(parts[i][1], parts[i + 2][2]) for i in runs if right[i] and parts[i + 1][0] == "obs" and right[i + 2]],
  }


def _hole(chunk: Document, formats: Formats, kind: float, which: float, first_reserved: int) -> Span | None:
  """The hole that two draws choose: its kind by the shares of those that there are, then one of its kind."""
  found = {name: spans for name, spans in holes(chunk, first_reserved).items() if spans}
  shares = {name: share for name, share in formats.holes if name in found and share > 0}
  if not shares:
    return None
  spans = found[_pick(shares, kind)]
  return spans[int(which * len(spans))]


def _pick(shares: Mapping[str, float], draw: float) -> str:
  left = draw * sum(shares.values())
  for name, share in shares.items():
    left -= share
    if left < 0:
      return name
  return name


def _frame(chunk: Document, first_reserved: int) -> Span:
  """What may be moved: all but a leading `<|bos|>` and a final `<|eos|>`."""
  first, last = chunk.ids[[0, -1]].tolist()
  return int(first == marker(first_reserved, "bos")), len(chunk) - (last == marker(first_reserved, "eos"))


def _random_span(chunk: Document, one: float, other: float, first_reserved: int) -> Span:
  start, stop = _frame(chunk, first_reserved)
  cuts = sorted(start + int(draw * (stop - start)) for draw in (one, other))
  return cuts[0], cuts[1] + 1


def _permuted(chunk: Document, span: Span, *, suffix_first: bool, first_reserved: int) -> Document:
  start, stop = _frame(chunk, first_reserved)
  middle = flagged(chunk[span[0] : span[1]], Flag.HOLE)
  pre, suf, mid = (_added([marker(first_reserved, name)]) for name in ("fim_pre", "fim_suf", "fim_mid"))
  prefix, suffix = chunk[start : span[0]], chunk[span[1] : stop]
  moved = [pre, suf, suffix, mid, prefix, middle] if suffix_first else [pre, prefix, suf, suffix, mid, middle]
  return join([chunk[:start], *moved, chunk[stop:]])


def _decision(chunk: Document, recipe: Recipe, first_reserved: int, fetch: Callable[[int], Document]) -> Document:
  assert recipe.call is not None
  start, stop = calls(chunk, first_reserved)[recipe.call, :2].tolist()
  candidates = [_call(fetch(record), number, first_reserved) for record, number in recipe.distractors]
  candidates.insert(int(recipe.draws[0] * (len(candidates) + 1)), chunk.ids[start:stop])
  choose, end = marker(first_reserved, "choose"), marker(first_reserved, "end")
  true = flagged(chunk[start:stop], Flag.DECISION)
  return join([chunk[:start], _added([choose, *np.concatenate(candidates), end]), true, chunk[stop:]])


def _faked(chunk: Document, recipe: Recipe, first_reserved: int) -> Document:
  assert recipe.call is not None
  table, ((_, later),) = calls(chunk, first_reserved), recipe.distractors
  (at, _), (start, stop) = table[[recipe.call, later], :2].tolist()
  # The fake weighs nothing, but to turn back from it is what there is to learn.
  back = _added([marker(first_reserved, name) for name in ("back", "end")], Role.BACK, Flag.ADDED | Flag.DECISION)
  return join([chunk[:at], flagged(chunk[start:stop], Flag.ADDED), back, chunk[at:]])


def _call(document: Document, number: int, first_reserved: int) -> np.ndarray:
  if not len(document):  # a damaged record under quarantine
    return document.ids
  start, stop = calls(document, first_reserved)[number, :2].tolist()
  return document.ids[start:stop]


def _added(ids: Sequence[int], role: Role = Role.MARKER, flags: Flag = Flag.ADDED) -> Document:
  n = len(ids)
  kinds = (role, Status.NA, flags)
  return Document(np.asarray(ids, np.int32), *(np.full(n, kind, np.uint8) for kind in kinds))
