"""Data that is tokenised already: streams of ids and lists of ids, to documents whose ids are kept.

| ending | what is read |
|---|---|
| .npy | an array of integers, [ids] or one document a row |
| .bin | bare ids of a type that `dtype` names, as nanoGPT and Megatron write them; the header of llm.c is passed over |
| .jsonl, .jsonl.gz, .jsonl.zst, .parquet | a list of ids a record, in the field `field` |

Streams are mapped, never read whole. What an id spells is checked as text is (see `safety`); where nothing is taken out of it,
the ids are stored as they were given.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from maxagent.data.source_items import Reject, SourceDocument
from maxagent.data.sources import Part, Paths, files, json_lines, suffix_of
from maxagent.errors import ConfigError, DataError, TokenizerMismatchError, UndecodableError
from maxagent.tokenizer import Tokenizer
from maxagent.tokenizer.vocabulary import spelled
from maxagent.traces.schema import RESERVED

READER = "tokens"  # of the parts that are made here
DTYPES = ("uint16", "uint32", "int32", "int64")
_SUFFIXES = (".npy", ".bin", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_LLM_C = (20240520, 20240801)  # first number of a header of 256 int32, the third of which counts the ids
_LLM_C_BYTES = 1024
_SCAN_IDS = 1 << 20  # of a stream at once; a longer document is cut there
_PROBE_IDS = 1 << 16  # that are encoded again to see whether the tokenizer is theirs

Ids = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenOptions:
  """How files of ids are read."""

  field: str = "input_ids"  # of JSON lines and parquet
  dtype: str | None = None  # of .bin
  # Ids that end a document and are left out: the tokenizer's own end of text, and its beginning. Ours are put around documents.
  split_at: tuple[int, ...] = ()
  allow_reserved: bool = False  # ids of the reserved block, else a reason to reject a document
  # Share of the first ids that must come back when what they spell is encoded again: of the tokenizer that made them 1.00, of
  # one trained on like text 0.80 to 0.93; 0 asks for nothing, as for ids that were drawn (BPE dropout).
  agreement: float = 0.95

  def __post_init__(self) -> None:
    if not 0 <= self.agreement <= 1:
      raise ConfigError(f"agreement is {self.agreement}; expected a share of ids, 0 to 1.")
    if self.dtype is not None and self.dtype not in DTYPES:
      raise ConfigError(f"dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}.")


def token_parts(paths: Paths, *, tokenizer: Tokenizer, options: TokenOptions) -> Iterator[Part | Reject]:
  """The documents of files and folders (walked in sorted order), their ids proven to be the tokenizer's.

  Raises:
    DataError: no such path, an unknown suffix, a .bin without `dtype`, or no list of ids where one should be.
    TokenizerMismatchError: the ids are not this tokenizer's, judged by encoding again what the first of them spell.
    UndecodableError: a file is not what its suffix says.
  """
  documents = _documents(paths, tokenizer, options)
  first: list[tuple[Ids, str] | Reject] = []
  count = 0
  while count < _PROBE_IDS and (document := next(documents, None)) is not None:
    first.append(document)
    count += 0 if isinstance(document, Reject) else len(document[0])
  _require_theirs([d[0] for d in first if not isinstance(d, Reject)], tokenizer, options.agreement)
  for document in itertools.chain(first, documents):
    if isinstance(document, Reject):
      yield document
    else:
      ids, origin = document
      yield Part(READER, "", ((ids.astype("<u4").tobytes(), origin),))


def token_documents(part: Part, tokenizer: Tokenizer) -> list[tuple[SourceDocument, npt.NDArray[np.int32]]]:
  """The documents of a part, with what their ids spell."""
  found = []
  for record, origin in part.records:
    ids = np.frombuffer(record, "<u4").astype(np.int32)
    found.append((SourceDocument(tokenizer.decode(ids.tolist()), origin), ids))
  return found


def _documents(paths: Paths, tokenizer: Tokenizer, options: TokenOptions) -> Iterator[tuple[Ids, str] | Reject]:
  for path in files(paths, _SUFFIXES):
    if isinstance(path, Reject):
      yield path
      continue
    for found in _read(path, options):
      if isinstance(found, Reject):
        yield found
        continue
      ids, origin = found
      reason = _fault(ids, tokenizer, options)
      yield found if reason is None else Reject(origin, reason)


def _read(path: pathlib.Path, options: TokenOptions) -> Iterator[tuple[Ids, str] | Reject]:
  suffix = suffix_of(path, _SUFFIXES)
  if suffix == ".npy":
    array = _open_npy(path)
    rows = [array] if array.ndim == 1 else array
    origins = [str(path)] if array.ndim == 1 else (f"{path}:{n}" for n in itertools.count())
    return (found for row, origin in zip(rows, origins, strict=False) for found in _split(row, origin, options))
  if suffix == ".bin":
    return _split(_open_bin(path, options.dtype), str(path), options)
  records = _parquet_lists(path, options.field) if suffix == ".parquet" else _json_lists(path, options.field)
  return (found for ids, origin in records for found in ([ids] if isinstance(ids, Reject) else _split(ids, origin, options)))


def _split(ids: Ids, origin: str, options: TokenOptions) -> Iterator[tuple[Ids, str]]:
  """Documents of a stream, with the place where each begins: cut at `split_at`, and where one outgrows a scan."""
  held: list[Ids] = []
  start = 0
  for at in range(0, len(ids), _SCAN_IDS):
    block = np.asarray(ids[at : at + _SCAN_IDS])
    begin = 0
    for cut in np.flatnonzero(np.isin(block, options.split_at)).tolist():
      yield from _document([*held, block[begin:cut]], origin, start)
      held, begin = [], cut + 1
      start = at + begin
    held.append(block[begin:])
    if sum(map(len, held)) >= _SCAN_IDS:
      yield from _document(held, origin, start)
      held, start = [], at + len(block)
  yield from _document(held, origin, start)


def _document(parts: list[Ids], origin: str, start: int) -> Iterator[tuple[Ids, str]]:
  ids = np.concatenate(parts) if parts else np.zeros(0, np.int64)
  if len(ids):  # between two ends, or before the first, there is nothing
    yield ids, f"{origin}@{start}" if start else origin


def _fault(ids: Ids, tokenizer: Tokenizer, options: TokenOptions) -> str | None:
  first = tokenizer.bos_id
  reserved = (ids >= first) & (ids < first + len(RESERVED))
  bad = (ids < 0) | (ids >= tokenizer.vocab_size) | (reserved & (not options.allow_reserved))
  if not bad.any():
    return None
  at = int(np.argmax(bad))
  if reserved[at]:
    name = tokenizer.reserved_name(int(ids[at])) or ""
    return f"id {ids[at]}, number {at}, is reserved ({spelled(name)}); --allow-reserved lets it in"
  return f"id {ids[at]}, number {at}, is none of the tokenizer's, which are 0 to {tokenizer.vocab_size - 1}"


def _require_theirs(documents: list[Ids], tokenizer: Tokenizer, least: float) -> None:
  """Raises TokenizerMismatchError where what the ids spell is encoded to others: a wrong name would train on noise."""
  given = [ids[:_PROBE_IDS].tolist() for ids in documents]
  again = tokenizer.encode_batch([tokenizer.decode(ids) for ids in given])
  same = sum((collections.Counter(a) & collections.Counter(b)).total() for a, b in zip(given, again, strict=True))
  agreement = same / max(1, sum(max(len(a), len(b)) for a, b in zip(given, again, strict=True)))
  if given and agreement < least:
    raise TokenizerMismatchError(
      f"of the first {sum(map(len, given)):,} ids {agreement:.0%} come back when what they spell is encoded again; expected "
      f"{least:.0%} (agreement). Another tokenizer or another type of integers wrote them, or ids that end documents are among "
      "them: name those (--tokenizer, --dtype, --split-at)."
    )


def _open_npy(path: pathlib.Path) -> Ids:
  try:
    array: Ids = np.load(path, mmap_mode="r", allow_pickle=False)
  except (ValueError, EOFError, OSError) as error:
    raise UndecodableError(f"{path} cannot be read as .npy ({error}); save it again, as integers.") from error
  if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
    raise DataError(f"{path} holds {array.dtype} of shape {array.shape}; expected integers, [ids] or [documents, ids].")
  return array


def _open_bin(path: pathlib.Path, dtype: str | None) -> Ids:
  if dtype is None:
    raise DataError(f"{path} does not say of which type its ids are; name it (dtype), one of {', '.join(DTYPES)}.")
  size = path.stat().st_size
  width = np.dtype(dtype).itemsize
  with path.open("rb") as file:
    head = np.frombuffer(file.read(12).ljust(12, b"\0"), "<i4")
  skipped = _LLM_C_BYTES if head[0] in _LLM_C and (size - _LLM_C_BYTES) == int(head[2]) * width else 0
  if not size or (size - skipped) % width:
    raise DataError(f"{path} has {size} bytes, which are no whole number of {dtype}; name another type, or copy it again.")
  return np.memmap(path, f"<{np.dtype(dtype).str[1:]}", "r", skipped)


def _json_lists(path: pathlib.Path, field: str) -> Iterator[tuple[Ids | Reject, str]]:
  found = False
  for line, origin in json_lines(path):
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      yield Reject(origin, f"not JSON: {error}", undecodable=isinstance(error, UnicodeDecodeError)), origin
      continue
    if not isinstance(record, dict) or field not in record:
      if not found:
        raise _no_field(path, field, list(record) if isinstance(record, dict) else [])
      yield Reject(origin, f"no field {field!r}"), origin
      continue
    found = True
    yield _list(record[field], origin, field), origin


def _parquet_lists(path: pathlib.Path, field: str) -> Iterator[tuple[Ids | Reject, str]]:
  import pyarrow  # 0.3 s, needed for this format alone
  import pyarrow.parquet

  row = 0
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      if field not in file.schema_arrow.names:
        raise _no_field(path, field, file.schema_arrow.names)
      for batch in file.iter_batches(columns=[field]):
        for value in batch.column(0):
          ids = getattr(value, "values", None)
          yield _list(None if ids is None else ids.to_numpy(zero_copy_only=False), f"{path}:{row}", field), f"{path}:{row}"
          row += 1
  except (pyarrow.ArrowException, OSError) as error:
    raise UndecodableError(f"{path} cannot be read as parquet ({error}); write it again.") from error


def _list(value: Any, origin: str, field: str) -> Ids | Reject:
  if isinstance(value, list | np.ndarray):
    try:
      ids = np.asarray(value)
    except ValueError:  # lists of different lengths in it
      ids = np.zeros(0)
    if ids.ndim == 1 and ids.dtype.kind in "iu":
      return ids
    if not len(value):
      return Reject(origin, "empty")
  return Reject(origin, f"field {field!r} is no list of whole numbers")


def _no_field(path: pathlib.Path, field: str, present: Iterable[Any]) -> DataError:
  names = ", ".join(repr(str(name)) for name in present) or "none"
  return DataError(f"{path} has no field {field!r}; its fields are {names}. Name the one that holds the ids (--ids-field).")
