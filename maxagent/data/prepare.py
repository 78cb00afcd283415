"""Parts of files to encoded documents: parsed, checked for safety, encoded; the work of a build that any process can do."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import struct
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

from maxagent.data import tokens
from maxagent.data.document import Document, join
from maxagent.data.encode import encode_texts, encode_traces, text_document
from maxagent.data.safety import Safety, SafetyOptions
from maxagent.data.source_items import Reject, SourceDocument, cut_text
from maxagent.data.sources import Item, Part, SourceTrace, items
from maxagent.data.tokens import token_documents
from maxagent.tokenizer import Tokenizer
from maxagent.traces.schema import Trace

Unit = Sequence[Part | Reject]  # what one process does at a time
Ids = npt.NDArray[np.int32]
_BYTES_PER_ID = 4  # of text, about: long documents of ids are cut where texts are


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
  """A document (a long text in parts) ready for a shard, or why it is none.

  `digest` is of its content, `place` is what its split is chosen by, `signature` what near-duplicates are found by, and
  `counts` is what it adds to the counts of the build.
  """

  origin: str
  digest: bytes = b""
  place: int = 0
  signature: bytes = b""
  documents: tuple[Document, ...] = ()
  text_bytes: tuple[int, ...] = ()  # of each
  counts: dict[str, int] = dataclasses.field(default_factory=dict)
  reject: Reject | None = None


@dataclasses.dataclass(slots=True)
class _Draft:
  """What is known of a document before it is encoded."""

  item: Item
  digest: bytes
  place: int
  signature: bytes
  counts: collections.Counter[str]
  ids: Ids | None  # of a text that came as ids and is kept so


class Preparer:
  """Prepares units; expensive to make (the rules for secrets, evaluation sets), so once in every process."""

  def __init__(self, tokenizer: Tokenizer, safety: SafetyOptions, *, part_bytes: int, threads: int | None = None) -> None:
    """`threads` are the tokenizer's, None for all cores; a longer text is cut into parts of `part_bytes`."""
    self._tokenizer = tokenizer
    self._safety = Safety(safety)
    self._part_bytes = part_bytes
    self._part_ids = max(1, part_bytes // _BYTES_PER_ID)
    self._threads = threads

  def __call__(self, unit: Unit) -> list[Prepared]:
    """What became of every document of the unit, in order."""
    drafts = [self._draft(item, ids) for part in unit for item, ids in self._items(part)]
    taken = [draft for draft in drafts if isinstance(draft, _Draft)]
    ready = iter(self._encoded(taken))
    return [next(ready) if isinstance(draft, _Draft) else draft for draft in drafts]

  def _items(self, part: Part | Reject) -> Iterable[tuple[Item | Reject, Ids | None]]:
    if isinstance(part, Reject):
      return [(part, None)]
    return token_documents(part, self._tokenizer) if part.reader == tokens.READER else ((item, None) for item in items(part))

  def _draft(self, item: Item | Reject, ids: Ids | None) -> _Draft | Prepared:
    if isinstance(item, Reject):
      return Prepared(item.origin, reject=item)
    content = _content(item)
    try:
      key = content.encode()
    except UnicodeEncodeError as error:
      reason = f"a lone surrogate at character {error.start}, which is no Unicode"
      return Prepared(item.origin, reject=Reject(item.origin, reason, undecodable=True))
    if not key.strip():
      return Prepared(item.origin, reject=Reject(item.origin, "empty"))
    digest = xxhash.xxh3_128_digest(key)
    checked = self._safety.check(item)
    if isinstance(checked.item, Reject):
      return Prepared(item.origin, digest, counts=dict(checked.counts), reject=checked.item)
    counts = collections.Counter(checked.counts)
    if isinstance(item, SourceTrace):
      segments = item.trace.segments
      failed = sum(segment.role == "call" and segment.status == "err" for segment in segments)
      counts.update({f"{item.format}_traces": 1, "segments": len(segments), "failed_calls": failed})
    kept = content if checked.item is item else _content(checked.item)
    counts["reserved_spellings"] += self._tokenizer.count_reserved_spellings(kept)
    place = xxhash.xxh3_64_intdigest((_group(item) or content).encode(), seed=1)
    if ids is not None and checked.item is not item:  # something was taken out of what they spell
      counts["encoded_again"] += 1
      ids = None
    return _Draft(checked.item, digest, place, checked.signature, counts, ids)

  def _encoded(self, drafts: Sequence[_Draft]) -> list[Prepared]:
    traces = [draft.item.trace for draft in drafts if isinstance(draft.item, SourceTrace)]
    texts = [cut_text(d.item.text, self._part_bytes) for d in drafts if isinstance(d.item, SourceDocument) and d.ids is None]
    encoded_traces = iter(self._muted(encode_traces(traces, self._tokenizer, threads=self._threads)))
    encoded_texts = iter(
      self._muted(encode_texts([p for parts in texts for p in parts], self._tokenizer, threads=self._threads))
    )
    parts_of_texts = iter(texts)
    prepared = []
    for draft in drafts:
      if isinstance(draft.item, SourceTrace):
        found, sizes = [next(encoded_traces)], [_trace_bytes(draft.item.trace)]
      elif draft.ids is not None:
        cut = [draft.ids[at : at + self._part_ids] for at in range(0, len(draft.ids), self._part_ids)]
        found = self._muted([text_document(ids, self._tokenizer) for ids in cut])
        sizes = _in_proportion(len(draft.item.text.encode()), [len(ids) for ids in cut])
      else:
        parts = next(parts_of_texts)
        found, sizes = [next(encoded_texts) for _ in parts], [len(part.encode()) for part in parts]
      draft.counts["muted_tokens"] += sum(muted for _, muted in found)
      if self._tokenizer.unknown_id is not None:
        draft.counts["unknown_tokens"] += sum(int(np.sum(d.ids == self._tokenizer.unknown_id)) for d, _ in found)
      documents, counts = tuple(document for document, _ in found), {name: n for name, n in draft.counts.items() if n}
      origin, digest, place = draft.item.origin, draft.digest, draft.place
      prepared.append(Prepared(origin, digest, place, draft.signature, documents, tuple(sizes), counts))
    return prepared

  def _muted(self, documents: Sequence[Document]) -> list[tuple[Document, int]]:
    """The documents with their repeated tokens muted, and how many were."""
    muted = self._safety.mute(documents)
    return [
      (after, 0 if after is before else int(np.count_nonzero(after.flags != before.flags)))
      for before, after in zip(documents, muted, strict=True)
    ]


def unit_key(unit: Unit, fingerprint: bytes) -> str:
  """What a unit's result depends on, as a digest: its records and a fingerprint of how they are prepared."""
  digest = xxhash.xxh3_128(fingerprint)
  for part in unit:
    if isinstance(part, Reject):
      digest.update(repr(part).encode())
      continue
    digest.update(f"{part.reader}\0{part.option}\0".encode())
    for record, origin in part.records:
      data = record if isinstance(record, bytes) else repr(record).encode("utf-8", "surrogatepass")
      digest.update(struct.pack("<Q", len(data)) + data + origin.encode("utf-8", "surrogateescape") + b"\0")
  return digest.hexdigest()


def pack(prepared: Iterable[Prepared]) -> bytes:
  """A unit's result as bytes that prove themselves: xxh3-64, then zstd of header and columns."""
  prepared = list(prepared)
  whole = join([document for p in prepared for document in p.documents]) if any(p.documents for p in prepared) else None
  columns = b"" if whole is None else b"".join(a.tobytes() for a in (whole.ids, whole.roles, whole.statuses, whole.flags))
  header = json.dumps([_record(p) for p in prepared]).encode()
  body = zstandard.compress(struct.pack("<Q", len(header)) + header + columns, 1)
  return struct.pack("<Q", xxhash.xxh3_64_intdigest(body)) + body


def unpack(data: bytes) -> list[Prepared] | None:
  """The inverse of `pack`; None where the bytes are not whole."""
  body = memoryview(data)[8:]
  if len(data) < 8 or xxhash.xxh3_64_intdigest(body) != struct.unpack_from("<Q", data)[0]:
    return None
  body = memoryview(zstandard.decompress(body))
  start = 8 + struct.unpack_from("<Q", body)[0]
  records = json.loads(bytes(body[8:start]))
  n = sum(sum(record["lengths"]) for record in records)
  ids = np.frombuffer(body, np.int32, n, start)
  roles, statuses, flags = np.frombuffer(body, np.uint8, 3 * n, start + 4 * n).reshape(3, n)
  whole, at = Document(ids, roles, statuses, flags), 0
  prepared = []
  for record in records:
    documents = []
    for length in record["lengths"]:
      documents.append(whole[at : at + length])
      at += length
    rejected = record["reject"]
    prepared.append(
      Prepared(
        origin=record["origin"],
        digest=bytes.fromhex(record["digest"]),
        place=record["place"],
        signature=bytes.fromhex(record["signature"]),
        documents=tuple(documents),
        text_bytes=tuple(record["text_bytes"]),
        counts=record["counts"],
        reject=Reject(**rejected) if rejected else None,
      )
    )
  return prepared


def _record(prepared: Prepared) -> dict[str, object]:
  return {
    "origin": prepared.origin,
    "digest": prepared.digest.hex(),
    "place": prepared.place,
    "signature": prepared.signature.hex(),
    "lengths": [len(document) for document in prepared.documents],
    "text_bytes": prepared.text_bytes,
    "counts": prepared.counts,
    "reject": dataclasses.asdict(prepared.reject) if prepared.reject else None,
  }


def _content(item: Item) -> str:
  """What makes a document the same as another: the text; of a trace everything but its id."""
  if isinstance(item, SourceDocument):
    return item.text
  return dataclasses.replace(item.trace, id="").to_json()


def _group(item: Item) -> str | None:
  """Documents of one group go to one split: of traces, all that happened in one world."""
  if isinstance(item, SourceDocument):
    return item.group
  return None if item.trace.env_seed is None else f"{item.trace.family}/{item.trace.env_seed}"


def _trace_bytes(trace: Trace) -> int:
  return sum(len(segment.text.encode()) + len((segment.args or "").encode()) for segment in trace.segments)


def _in_proportion(total: int, parts: Sequence[int]) -> list[int]:
  """A total, dealt to parts by their sizes.

  Example: 10 to parts [1, 1, 2] gives [2, 3, 5].
  """
  ends = [total * end // sum(parts) for end in itertools.accumulate(parts, initial=0)]
  return [stop - start for start, stop in itertools.pairwise(ends)]
