"""What will happen to a chunk, drawn before it is read."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from maxagent.config.schema import Formats

SENTINELS = 3  # <|fim_pre|> <|fim_suf|> <|fim_mid|>
LEAST_TOKENS = 16  # a shorter chunk stays as it is
_FRAME = 2  # <|choose|> ... <|end|> around the candidates
_BACK = 2  # <|back|> <|end|>
_TRIES = 8  # other records looked into for each distractor that the trace itself does not offer
Calls = npt.NDArray[np.uint32]  # [C, 4]: start, stop, digest, failed; see data.document.calls


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
  """How a chunk is rewritten.

  `draws` are what is left to chance, uniform in [0, 1): of infill and fim the order, then which hole or the two cuts; of a
  decision the true call's place among the candidates. `call` is the number of the true call, `distractors` are (record, call);
  a fake's is the later call of the trace itself.
  """

  name: str  # plain | infill | fim | decision | fake
  added: int = 0  # tokens
  draws: tuple[float, ...] = ()
  call: int | None = None
  distractors: tuple[tuple[int, int], ...] = ()


PLAIN = Recipe("plain")


def choose_text(formats: Formats, key: int, tokens: int) -> Recipe:
  """The recipe of a chunk of text of `tokens` tokens; `key` is all its chance comes from."""
  draw = random.Random(key).random
  return _permutation("fim", draw) if draw() < formats.fim and tokens >= LEAST_TOKENS else PLAIN


class Pool(Protocol):
  """The records of a source, of which only the calls are known."""

  def __len__(self) -> int:
    """How many there are."""

  def calls(self, record: int) -> Calls:
    """The calls of one."""


def choose_trace(formats: Formats, key: int, tokens: int, *, room: int, record: int, whole: bool, pool: Pool) -> Recipe:
  """The recipe of a chunk of a trace.

  Args:
    formats: the shares.
    key: all that is left to chance comes from it.
    tokens: of the chunk, which may grow to `room`.
    room: see `tokens`.
    record: the trace's number.
    whole: whether the chunk is all of the trace; a part of one is never made a decision or given a fake.
    pool: where distractors come from that the trace itself does not offer.
  """
  draw = random.Random(key).random
  what = draw()
  if tokens < LEAST_TOKENS:
    return PLAIN
  if what < formats.infill + formats.fim:
    return _permutation("infill" if what < formats.infill else "fim", draw) if tokens + SENTINELS <= room else PLAIN
  if what >= formats.rewritten or not whole:
    return PLAIN
  if what < formats.infill + formats.fim + formats.decision:
    others = ((other, pool.calls(other)) for other in iter(lambda: int(draw() * len(pool)), None))
    recipe = _decision(pool.calls(record), record, others, distractors=formats.distractors, draw=draw)
  else:
    recipe = _fake(pool.calls(record), record, draw)
  return recipe if recipe and tokens + recipe.added <= room else PLAIN


def _permutation(name: str, draw: Callable[[], float]) -> Recipe:
  return Recipe(name, SENTINELS, (draw(), draw(), draw()))


def _decision(
  calls: Calls, record: int, others: Iterator[tuple[int, Calls]], *, distractors: int, draw: Callable[[], float]
) -> Recipe | None:
  """None where the trace has no call that did not fail, or too few distractors are found."""
  rows = calls.tolist()
  right = [number for number, (*_, failed) in enumerate(rows) if not failed]
  if not right:
    return None
  true = right[int(draw() * len(right))]
  seen = {rows[true][2]}
  found: list[tuple[int, int]] = []
  added = _FRAME + rows[true][1] - rows[true][0]

  def take(where: int, number: int, row: list[int]) -> None:
    nonlocal added
    if len(found) < distractors and row[2] not in seen:
      seen.add(row[2])
      found.append((where, number))
      added += row[1] - row[0]

  # The trace's own other calls are the hard ones: the same tools, at another time.
  for number in sorted(range(len(rows)), key=lambda _: draw()):
    take(record, number, rows[number])
  for _ in range(_TRIES * (distractors - len(found))):
    other, table = next(others)
    if len(table):
      number = int(draw() * len(table))
      take(other, number, table[number].tolist())
    if len(found) == distractors:
      break
  if len(found) < distractors:
    return None
  return Recipe("decision", added, (draw(),), true, tuple(found))


def _fake(calls: Calls, record: int, draw: Callable[[], float]) -> Recipe | None:
  """None where no call that did not fail is followed by another such."""
  rows = calls.tolist()
  right = [number for number, (*_, failed) in enumerate(rows) if not failed]
  later = {true: [n for n in right if n > true and rows[n][2] != rows[true][2]] for true in right}
  places = [true for true in right if later[true]]
  if not places:
    return None
  true = places[int(draw() * len(places))]
  fake = later[true][int(draw() * len(later[true]))]
  return Recipe("fake", _BACK + rows[fake][1] - rows[fake][0], (), true, ((record, fake),))
