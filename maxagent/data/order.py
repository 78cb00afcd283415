"""The endless order of a source's documents, how it is dealt to the streams, and what of it comes next."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence

import grain
import xxhash

from maxagent.config.schema import Data, Source
from maxagent.data.copies import local_split
from maxagent.data.document import Document, flagged, join
from maxagent.data.formats import PLAIN, SENTINELS, Recipe, choose_text, choose_trace, rewrite
from maxagent.data.packing import pack_window, window_is_full
from maxagent.data.shards import TokenShards, open_shards
from maxagent.errors import DamagedShardError, EmptySourceError
from maxagent.traces.schema import Flag

SPLITTABLE_KINDS = ("web",)
_CALIBRATION_DOCUMENTS = 4096  # packed at opening to know the mean fill; its error is then under 0.3% of a row
_LARGEST_HEAD = 4  # a head is told again to the pieces of a long trace if it takes at most a row divided by this

# Of text (document, offset in it, 0), of traces (first document of a packing window, bins of it that were read, phase of
# `data.lengths` it was packed in, 0 while no bin was read); documents are counted per stream.
Position = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
  """Tokens [start, stop) of a document (by its number in the stream), after its first `head` again, rewritten by a recipe."""

  document: int
  start: int
  stop: int
  head: int = 0
  recipe: Recipe = PLAIN

  @property
  def content(self) -> int:
    """How many of the document's own tokens it holds."""
    return self.stop - self.start

  @property
  def tokens(self) -> int:
    """How many places of a row it takes."""
    return self.stop - self.start + self.head + self.recipe.added


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
  """What comes next of a source in a stream, planned without reading a document."""

  pieces: tuple[Piece, ...]
  position: Position  # after them

  @property
  def content(self) -> int:
    """The documents' own tokens."""
    return sum(piece.content for piece in self.pieces)

  @property
  def tokens(self) -> int:
    """Places of the row."""
    return sum(piece.tokens for piece in self.pieces)


@dataclasses.dataclass(frozen=True, slots=True)
class _Window:
  """Documents [first, stop) of a stream, packed for the rows of a phase: what shares a row."""

  first: int
  stop: int
  phase: int
  bins: tuple[tuple[Piece, ...], ...]


class OrderedDocuments:
  """A source in its endless shuffled order, dealt to V streams: document n of stream v is number n V + v of the order."""

  def __init__(self, source: Source, shards: TokenShards, data: Data) -> None:
    self.name = source.name
    self.max_epochs = source.max_epochs
    self.shards = shards
    self.splittable = shards.index.kind in SPLITTABLE_KINDS
    self._streams = shards.index.streams
    self._first_reserved = shards.index.first_reserved
    self._window = data.packing_window
    self._capacities = [length for _, _, length in data.shapes]  # per phase
    self._formats = data.formats
    self._rewrites = data.formats.rewritten > 0
    # Each source has an order of its own: with one seed, sources of equal size would walk in step.
    self._seed = xxhash.xxh32_intdigest(f"{data.seed}/{source.name}".encode())
    self._records = grain.MapDataset.range(len(shards)).seed(self._seed).shuffle().repeat()
    self._current: dict[int, tuple[int, Document]] = {}
    self._packed: dict[int, _Window] = {}
    self._damaged_in_a_row = 0

  def take(self, stream: int, position: Position, room: int, phase: int) -> Taken:
    """The next `room` tokens of text, or the next bin of whole traces; the same in every process.

    A window is read to its end as it was packed: where rows have become longer since, they take as many bins as they hold.
    """
    if self.splittable:
      return self._take_text(stream, position, room)
    first, read, packed_in = position
    packed_in = packed_in if read else phase
    window = self._packed_window(stream, first, packed_in)
    pieces: list[Piece] = []
    while read < len(window.bins) and (needed := sum(piece.tokens for piece in window.bins[read])) <= room:
      pieces += window.bins[read]
      room -= needed
      read += 1
    return Taken(tuple(pieces), (window.stop, 0, 0) if read == len(window.bins) else (first, read, packed_in))

  def read(self, stream: int, piece: Piece) -> tuple[Document, int, int]:
    """A document and the span of it that the piece is. The document is empty where it is damaged and quarantined."""
    record, _ = self._record(stream, piece.document)
    document = self._document(stream, piece.document, record)
    if not len(document) or (piece.recipe is PLAIN and not piece.head):
      return document, piece.start, min(piece.stop, len(document))
    # A plain piece is given the token after it as well, as the target of its last.
    after = piece.stop + (piece.recipe is PLAIN and piece.stop < len(document))
    chunk = document[piece.start : after]
    if piece.start:
      chunk = flagged(chunk, Flag.CONTINUED)
    fetch = self.shards.__getitem__
    chunk = rewrite(chunk, piece.recipe, self._formats, first_reserved=self._first_reserved, fetch=fetch)
    if piece.head:
      chunk = join([flagged(document[: piece.head], Flag.MUTED | Flag.ADDED | Flag.CONTINUED), chunk])
    return chunk, 0, len(chunk) - (after - piece.stop)

  def mean_fill(self, phase: int) -> float:
    """Share of a row of a phase that the documents' own tokens fill, over the first windows of all streams."""
    if self.splittable:
      return 1.0
    content = rows = number = 0
    firsts = [0] * self._streams
    while number < min(_CALIBRATION_DOCUMENTS, len(self.shards)):
      stream = min(range(self._streams), key=firsts.__getitem__)
      window = self._packed_window(stream, firsts[stream], phase)
      number += window.stop - firsts[stream]
      firsts[stream] = window.stop
      content += sum(piece.content for row in window.bins for piece in row)
      rows += len(window.bins)
    return content / (rows * self._capacities[phase])

  def epochs(self, position: Sequence[int], stream: int) -> float:
    """How often a stream at `position` has gone through the source."""
    return (position[0] * self._streams + stream) / len(self.shards)

  def _take_text(self, stream: int, position: Position, room: int) -> Taken:
    number, offset, _ = position
    pieces: list[Piece] = []
    while room:
      record, epoch = self._record(stream, number)
      left = int(self.shards.lengths[record]) - offset
      content, recipe = min(room, left), PLAIN
      if self._formats.fim:
        recipe = choose_text(self._formats, self._key(record, offset, epoch), content)
        content = min(room - recipe.added, left)
      piece = Piece(number, offset, offset + content, 0, recipe)
      pieces.append(piece)
      room -= piece.tokens
      number, offset = (number + 1, 0) if content == left else (number, offset + content)
    return Taken(tuple(pieces), (number, offset, 0))

  def _packed_window(self, stream: int, first: int, phase: int) -> _Window:
    """The packing window of a stream that begins with document `first`, in bins for the rows of a phase."""
    held = self._packed.get(stream)
    if held is None or (held.first, held.phase) != (first, phase):
      capacity, stop, tokens = self._capacities[phase], first, 0
      documents: list[list[Piece]] = []
      while not window_is_full(len(documents), tokens, window=self._window, capacity=capacity):
        documents.append(self._cut(stream, stop, capacity))
        tokens += sum(piece.content for piece in documents[-1])
        stop += 1
      packed = pack_window([[piece.tokens for piece in pieces] for pieces in documents], capacity)
      bins = tuple(tuple(documents[place][piece] for place, piece in row) for row in packed)
      held = self._packed[stream] = _Window(first, stop, phase, bins)
    return held

  def _cut(self, stream: int, number: int, room: int) -> list[Piece]:
    """A trace whole, or in pieces that fit into rows of `room` with room for what their recipes add."""
    record, epoch = self._record(stream, number)
    length = int(self.shards.lengths[record])
    if length <= room:
      return [Piece(number, 0, length, 0, self._choose(record, 0, epoch, length, room, whole=True))]
    head = int(self.shards.heads[record])
    head = head if head * _LARGEST_HEAD <= room else 0
    spare = SENTINELS if self._rewrites else 0
    pieces: list[Piece] = []
    start = 0
    while start < length:
      told = head if start else 0
      stop = min(length, start + room - told - spare)
      recipe = self._choose(record, start, epoch, stop - start, room - told, whole=False)
      pieces.append(Piece(number, start, stop, told, recipe))
      start = stop
    return pieces

  def _choose(self, record: int, start: int, epoch: int, tokens: int, room: int, *, whole: bool) -> Recipe:
    if not self._rewrites:
      return PLAIN
    key = self._key(record, start, epoch)
    return choose_trace(self._formats, key, tokens, room=room, record=record, whole=whole, pool=self.shards)

  def _key(self, record: int, start: int, epoch: int) -> int:
    """What all chance in a chunk comes from: another pass over the source draws anew."""
    return xxhash.xxh3_64_intdigest(struct.pack("<4Q", self._seed, record, start, epoch))

  def _record(self, stream: int, number: int) -> tuple[int, int]:
    """The record of a stream's document, and which pass over the source it is of."""
    n = number * self._streams + stream
    return int(self._records[n]), n // len(self.shards)

  def _document(self, stream: int, number: int, record: int) -> Document:
    """A document; the last one read of each stream is kept, as rows continue it."""
    held = self._current.get(stream)
    if held is None or held[0] != number:
      held = self._current[stream] = (number, self.shards[record])
      self._damaged_in_a_row = 0 if len(held[1]) else self._damaged_in_a_row + 1
      if self._damaged_in_a_row > len(self.shards):
        raise DamagedShardError(f"every document of {self.shards.path} is damaged; build the data again.")
    return held[1]


def open_source(source: Source, data: Data, tokenizer_digest: str, split: str) -> TokenShards:
  """The shards of a source's split.

  Raises:
    EmptySourceError: they hold no document; else as `open_shards` and `local_split`.
  """
  path = f"{source.path}/{split}"
  shards = open_shards(local_split(path), tokenizer_digest=tokenizer_digest, on_damage=data.on_damage)
  if not len(shards):
    cure = "hold out more (--heldout), of more documents than one" if split == "heldout" else "give it more text"
    raise EmptySourceError(f"source {source.name!r}: {path} holds no document; build it again and {cure}.")
  return shards
