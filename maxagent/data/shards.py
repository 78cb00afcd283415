"""Encoded documents on disk: one folder per split, ArrayRecord shards beside an index that says what they hold.

    SPLIT/index.json                  format version, kind, tokenizer, totals, a digest per file, a digest of itself
    SPLIT/lengths.npy                 tokens of every document, uint32: rows are planned without reading documents, and so are
    SPLIT/heads.npy                   the tokens that say who the agent is and what is wanted (document.head_tokens), uint32
    SPLIT/calls.npy                   every call of every document (document.calls), [C, 4] uint32
    SPLIT/call_starts.npy             where a document's calls begin in calls.npy, [documents + 1] uint64
    SPLIT/tokens-00000.array_record   one document per record

A record is `checksum, header, ids, roles, statuses, flags` (see `encode_record`); its checksum is proven at every read, so that
a damaged document is named, never trained on. The digest of a whole file is proven at opening only while the split is small
(`FULL_CHECK_BYTES`): on a pod that would read every shard once more.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from maxagent.data.document import EMPTY, Document, calls, head_tokens
from maxagent.errors import ConfigError, DamagedShardError, DataError, TokenizerMismatchError
from maxagent.traces.schema import Flag, Role, Status

FORMAT_VERSION = 3
INDEX_FILE = "index.json"
TABLES = ("lengths", "heads", "calls", "call_starts")
# A split up to this size is hashed whole at opening: about 30 ms.
FULL_CHECK_BYTES = 64 << 20
# One record per chunk: a flipped bit costs one document, and a random read decodes nothing else.
_WRITER_OPTIONS = "group_size:1,zstd:1"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_HEADER = struct.Struct("<QIHH")  # xxh3-64 of what follows it, tokens, bytes per id, zero


def encode_record(document: Document, *, id_bytes: int) -> bytes:
  """The stored form of a document; `id_bytes` is 2 or 4."""
  ids = document.ids.astype(np.dtype(f"<u{id_bytes}"), copy=False)
  body = b"".join(a.tobytes() for a in (ids, document.roles, document.statuses, document.flags))
  head = _HEADER.pack(0, len(document), id_bytes, 0)[8:]
  return struct.pack("<Q", xxhash.xxh3_64_intdigest(head + body)) + head + body


def decode_record(record: bytes) -> Document:
  """The inverse of `encode_record`.

  Raises:
    ValueError: the checksum or the size disagrees; the caller knows the shard and adds its name.
  """
  if len(record) < _HEADER.size:
    raise ValueError(f"{len(record)} bytes are too few for a record")
  checksum, n, id_bytes, _ = _HEADER.unpack_from(record)
  if xxhash.xxh3_64_intdigest(memoryview(record)[8:]) != checksum:
    raise ValueError("its checksum does not match its bytes")
  if id_bytes not in (2, 4) or len(record) != _HEADER.size + n * (id_bytes + 3):
    raise ValueError(f"{len(record)} bytes do not fit its {n} tokens")
  at = _HEADER.size + n * id_bytes
  ids = np.frombuffer(record, f"<u{id_bytes}", n, _HEADER.size).astype(np.int32)
  roles, statuses, flags = np.frombuffer(record, np.uint8, 3 * n, at).reshape(3, n)
  return Document(ids, roles, statuses, flags)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFile:
  """One ArrayRecord file; `digest` is xxh3-128 of its bytes, `bytes` of the text that was encoded."""

  file: str
  documents: int
  tokens: int
  bytes: int
  file_bytes: int
  digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardIndex:
  """What a split holds. `counts` is of the whole build: duplicates, rejected, undecodable, reserved_spellings, ..."""

  format_version: int
  kind: str
  tokenizer: str
  vocab_size: int
  first_reserved: int  # id of the first reserved token
  streams: int
  documents: int
  tokens: int
  bytes: int
  role_tokens: dict[str, int]
  target_tokens: dict[str, int]  # by role and status, such as call.err: all but first, muted and added tokens
  shards: tuple[ShardFile, ...]
  tables: dict[str, str]  # digests of the tables
  counts: dict[str, int]

  @property
  def digest(self) -> str:
    """Digest of everything above, so that of every byte of the split."""
    return xxhash.xxh3_128_hexdigest(json.dumps(dataclasses.asdict(self), sort_keys=True).encode())

  def target_share(self, wanted: npt.NDArray[np.bool_]) -> float:
    """The share of all tokens that are targets of the (role, status) that `wanted` [roles, statuses] marks."""
    counts = {(role, status): self.target_tokens.get(_pair(role, status), 0) for role in Role for status in Status}
    return sum(n for pair, n in counts.items() if wanted[pair]) / max(1, self.tokens)

  def to_json(self) -> str:
    """The text of index.json."""
    return json.dumps(dataclasses.asdict(self) | {"digest": self.digest}, indent=1)


def _pair(role: Role, status: Status) -> str:
  return f"{role.name}.{status.name}".lower()


def read_index(split: str | os.PathLike[str]) -> ShardIndex:
  """Reads SPLIT/index.json.

  Raises:
    DataError: no such folder or index, or another format version.
    DamagedShardError: the index is not what was written.
  """
  path = pathlib.Path(split) / INDEX_FILE
  if not path.is_file():
    raise DataError(
      f"{path} does not exist; expected a folder written by `maxagent data build` (an interrupted build has none)."
    )
  return parse_index(path.read_bytes(), path)


def parse_index(content: bytes, path: str | os.PathLike[str]) -> ShardIndex:
  """The index that a file holds; `path` names it in errors, which are those of `read_index`."""
  try:
    record = json.loads(content)
    version, digest = record["format_version"], record.pop("digest")
    if version != FORMAT_VERSION:
      raise DataError(f"{path} has format version {version}; this release reads {FORMAT_VERSION}. Build the data again.")
    index = ShardIndex(**record | {"shards": tuple(ShardFile(**shard) for shard in record["shards"])})
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise DamagedShardError(f"{path} is damaged ({error!r}); build the data again.") from error
  if index.digest != digest:
    raise DamagedShardError(f"{path} is damaged: its digest does not match its content; build the data again.")
  return index


class ShardWriter:
  """Writes one split. The index is written last: a folder without one is an interrupted build."""

  def __init__(
    self, split: str | os.PathLike[str], *, kind: str, tokenizer_digest: str, vocab_size: int, first_reserved: int,
    streams: int, shard_tokens: int = 1 << 26,
  ) -> None:  # fmt: skip
    self._folder = pathlib.Path(split)
    self._folder.mkdir(parents=True, exist_ok=True)
    for old in (self._folder / INDEX_FILE, *self._folder.glob("tokens-*.array_record")):
      old.unlink(missing_ok=True)
    self._index: dict[str, Any] = {
      "kind": kind, "tokenizer": tokenizer_digest, "vocab_size": vocab_size, "first_reserved": first_reserved,
      "streams": streams,
    }  # fmt: skip
    self._id_bytes = 2 if vocab_size <= 1 << 16 else 4
    self._shard_tokens = shard_tokens
    self._shards: list[ShardFile] = []
    self._lengths: list[int] = []
    self._heads: list[int] = []
    self._calls: list[npt.NDArray[np.uint32]] = []
    self._role_tokens = np.zeros(len(Role), np.int64)
    self._targets = np.zeros((len(Role), len(Status)), np.int64)
    self._writer: ArrayRecordWriter | None = None
    self._documents = self._tokens = self._bytes = 0  # of the shard being written

  def add(self, document: Document, text_bytes: int) -> None:
    """Appends a document; `text_bytes` is the UTF-8 size of what it encodes, for bits per byte."""
    if not len(document):
      raise DataError("a document without tokens was given to ShardWriter.add; expected at least one token.")
    if self._writer is None:
      self._writer = ArrayRecordWriter(str(self._path()), _WRITER_OPTIONS)
    self._writer.write(encode_record(document, id_bytes=self._id_bytes))
    self._lengths.append(len(document))
    self._heads.append(head_tokens(document, self._index["first_reserved"]))
    self._calls.append(calls(document, self._index["first_reserved"]))
    self._role_tokens += np.bincount(document.roles, minlength=len(Role))
    targets = document[1:]
    spoken = targets.flags & (Flag.MUTED | Flag.ADDED) == 0
    np.add.at(self._targets, (targets.roles[spoken], targets.statuses[spoken]), 1)
    self._documents += 1
    self._tokens += len(document)
    self._bytes += text_bytes
    if self._tokens >= self._shard_tokens:
      self._end_shard()

  def close(self, counts: dict[str, int]) -> ShardIndex:
    """Finishes the files and writes the index."""
    self._end_shard()
    tables = self._write_tables()
    totals = {name: sum(getattr(s, name) for s in self._shards) for name in ("documents", "tokens", "bytes")}
    role_tokens = {role.name.lower(): int(self._role_tokens[role]) for role in Role if self._role_tokens[role]}
    target_tokens = {_pair(r, s): n for r in Role for s in Status if (n := int(self._targets[r, s]))}
    index = ShardIndex(
      format_version=FORMAT_VERSION, **self._index, **totals, role_tokens=role_tokens, target_tokens=target_tokens,
      shards=tuple(self._shards), tables=tables, counts=dict(counts),
    )  # fmt: skip
    unfinished = self._folder / (INDEX_FILE + ".partial")
    unfinished.write_text(index.to_json(), encoding="utf-8")
    unfinished.replace(self._folder / INDEX_FILE)
    return index

  def _write_tables(self) -> dict[str, str]:
    starts = np.cumsum([0, *map(len, self._calls)], dtype=np.uint64)
    columns: tuple[npt.NDArray[Any], ...] = (
      np.asarray(self._lengths, np.uint32), np.asarray(self._heads, np.uint32),
      np.concatenate([np.zeros((0, 4), np.uint32), *self._calls]), starts,
    )  # fmt: skip
    for name, column in zip(TABLES, columns, strict=True):
      np.save(_table_path(self._folder, name), column)
    return {name: file_digest(_table_path(self._folder, name)) for name in TABLES}

  def _path(self) -> pathlib.Path:
    return self._folder / f"tokens-{len(self._shards):05d}.array_record"

  def _end_shard(self) -> None:
    if self._writer is None:
      return
    self._writer.close()
    path = self._path()
    shard = ShardFile(
      file=path.name, documents=self._documents, tokens=self._tokens, bytes=self._bytes,
      file_bytes=path.stat().st_size, digest=file_digest(path),
    )  # fmt: skip
    self._shards.append(shard)
    self._writer = None
    self._documents = self._tokens = self._bytes = 0


class TokenShards:
  """The documents of a split by number: a random-access source, as Grain reads them.

  Under `on_damage="quarantine"` a damaged record reads as `EMPTY` and is listed in `quarantined`; otherwise it raises.
  """

  def __init__(self, split: str | os.PathLike[str], index: ShardIndex, on_damage: str = "raise") -> None:
    self.path = pathlib.Path(split)
    self.index = index
    self.lengths, self.heads, self._calls, self._call_starts = (_read_table(self.path, index, name) for name in TABLES)
    self.quarantined: dict[tuple[str, int | None], str] = {}
    self._on_damage = on_damage
    self._starts = np.cumsum([0] + [shard.documents for shard in index.shards])
    self._readers: dict[int, ArrayRecordReader] = {}
    self._closed_shards: set[int] = set()  # shards whose own index is damaged: no record of them can be read

  def __len__(self) -> int:
    return self.index.documents

  def __repr__(self) -> str:
    return f"TokenShards({self.index.digest})"

  def __getitem__(self, number: int) -> Document:
    if not 0 <= number < len(self):
      raise IndexError(f"document {number} of {len(self)}")
    shard = int(np.searchsorted(self._starts, number, side="right")) - 1
    record = number - int(self._starts[shard])
    try:
      if shard in self._closed_shards:
        return EMPTY
      return self._read(shard, record, int(self.lengths[number]))
    except _Damage as damage:
      self.report_damage(shard, record if damage.one_record else None, str(damage))
      if not damage.one_record:
        self._closed_shards.add(shard)
      return EMPTY

  def calls(self, number: int) -> npt.NDArray[np.uint32]:
    """The calls of a document, [C, 4], as `document.calls` gives them."""
    start, stop = self._call_starts[number : number + 2].tolist()
    return self._calls[start:stop]

  def report_damage(self, shard: int, record: int | None, reason: str) -> None:
    """Raises, or under quarantine notes, that a record (None: the whole file) of a shard is damaged."""
    name = self.index.shards[shard].file
    where = "the whole file" if record is None else f"record {record}"
    if self._on_damage == "quarantine":
      if (name, record) not in self.quarantined:
        logging.getLogger(__name__).warning("left out, as it is damaged: %s, %s: %s", self.path / name, where, reason)
      self.quarantined[name, record] = reason
      return
    raise DamagedShardError(
      f"{self.path / name}, {where}: {reason}. Build the data again, or set data.on_damage=quarantine to skip and count damage."
    )

  def close(self) -> None:
    """Closes the files."""
    for reader in self._readers.values():
      reader.close()
    self._readers.clear()

  def _read(self, shard: int, record: int, length: int) -> Document:
    reader = self._readers.get(shard)
    if reader is None:
      reader = self._readers[shard] = _open_reader(self.path, self.index.shards[shard])
    try:
      document = decode_record(reader.read([record])[0])
    except (RuntimeError, ValueError, IndexError) as error:
      raise _Damage(str(error)) from error
    if len(document) != length:
      raise _Damage(f"it holds {len(document)} tokens where lengths.npy says {length}")
    return document


class _Damage(Exception):
  def __init__(self, reason: str, *, one_record: bool = True) -> None:
    super().__init__(reason)
    self.one_record = one_record


def _open_reader(folder: pathlib.Path, shard: ShardFile) -> ArrayRecordReader:
  path = folder / shard.file
  if not path.is_file():
    raise _Damage("the file is missing", one_record=False)
  size = path.stat().st_size
  if size != shard.file_bytes:
    raise _Damage(f"it has {size} bytes where the index says {shard.file_bytes}", one_record=False)
  try:
    reader = ArrayRecordReader(str(path), _READER_OPTIONS)
    documents = reader.num_records()
  except (RuntimeError, ValueError) as error:
    raise _Damage(str(error), one_record=False) from error
  if documents != shard.documents:
    raise _Damage(f"it opens with {documents} records where the index says {shard.documents}", one_record=False)
  return reader


def _table_path(folder: pathlib.Path, name: str) -> pathlib.Path:
  return folder / f"{name}.npy"


def _read_table(folder: pathlib.Path, index: ShardIndex, name: str) -> npt.NDArray[Any]:
  path = _table_path(folder, name)
  if not path.is_file():
    raise DamagedShardError(f"{path} is missing; build the data again.")
  if file_digest(path) != index.tables[name]:
    raise DamagedShardError(f"{path} is damaged: its digest is not the one in {INDEX_FILE}; build the data again.")
  whole = path.stat().st_size
  table: npt.NDArray[Any] = np.load(path, mmap_mode="r" if whole > 1 << 20 else None)
  return table


def open_shards(split: str | os.PathLike[str], *, tokenizer_digest: str | None = None, on_damage: str = "raise") -> TokenShards:
  """Opens a split folder (DIR/train or DIR/heldout); `tokenizer_digest=None` accepts any tokenizer.

  Raises:
    DataError: no such folder.
    TokenizerMismatchError: the shards hold another tokenizer's ids.
    DamagedShardError: the index or the lengths are damaged; or a shard is, unless `on_damage` is "quarantine".
  """
  if on_damage not in ("raise", "quarantine"):
    raise ConfigError(f"on_damage is {on_damage!r}; expected 'raise' or 'quarantine'.")
  index = read_index(split)
  if tokenizer_digest is not None and tokenizer_digest != index.tokenizer:
    raise TokenizerMismatchError(
      f"{os.fspath(split)} was encoded with tokenizer {index.tokenizer}; the tokenizer given is {tokenizer_digest}. "
      "Name the tokenizer the shards were built with (data.tokenizer), or build the data again with this one."
    )
  shards = TokenShards(split, index, on_damage)
  if sum(shard.file_bytes for shard in index.shards) <= FULL_CHECK_BYTES:
    for shard, record, reason in find_damage(shards):
      shards.report_damage(shard, record, reason)
  return shards


def find_damage(shards: TokenShards) -> Iterator[tuple[int, int | None, str]]:
  """Hashes every file of a split whole; for one that changed, yields (shard, record or None, reason) of what is damaged."""
  first = 0
  for number, shard in enumerate(shards.index.shards):
    path = shards.path / shard.file
    if not path.is_file():
      yield number, None, "the file is missing"
    elif file_digest(path) != shard.digest:
      yield from _scan(path, number, shard, shards.lengths[first : first + shard.documents])
    first += shard.documents


def _scan(
  path: pathlib.Path, number: int, shard: ShardFile, lengths: npt.NDArray[np.uint32]
) -> Iterator[tuple[int, int | None, str]]:
  try:
    reader = _open_reader(path.parent, shard)
  except _Damage as damage:
    yield number, None, str(damage)
    return
  found = False
  for record, length in enumerate(lengths):
    try:
      if len(decode_record(reader.read([record])[0])) != length:
        raise ValueError("its length is not the one in lengths.npy")
    except (RuntimeError, ValueError, IndexError) as error:
      found = True
      yield number, record, str(error)
  reader.close()
  if not found:
    yield number, None, "its digest is not the one in the index, though every record of it reads well (padding changed)"


def file_digest(path: str | os.PathLike[str]) -> str:
  """xxh3-128 of a file's bytes, in hex."""
  digest = xxhash.xxh3_128()
  with open(path, "rb") as file:
    while block := file.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()
