"""Other people's files to texts and traces. Nothing is dropped in silence: what is not read comes out as a `Reject`.

Files are first cut into `Part`s, records not yet parsed (`text_parts`, `trace_parts`), which any process can parse (`items`).
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import os
import pathlib
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from maxagent.data.harvest import harvest
from maxagent.data.source_items import Reject, SourceDocument, decode_text
from maxagent.errors import DamagedShardError, DataError, UndecodableError
from maxagent.traces import loaders
from maxagent.traces.schema import Trace

__all__ = [
  "Item", "Part", "Reject", "SourceDocument", "SourceTrace", "harvest", "harvest_parts", "items", "read_documents",
  "read_traces", "text_parts", "trace_parts",
]  # fmt: skip

Paths = Sequence[str | os.PathLike[str]]
_BLOCK_BYTES = 1 << 20
_PART_BYTES = 1 << 20  # of records that are parsed together
_PART_RECORDS = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class SourceTrace:
  """A trace, where it was found and of which format its file is."""

  trace: Trace
  origin: str
  format: str


Item = SourceDocument | SourceTrace


class Part(NamedTuple):
  """Some records of one file in order, not yet parsed: (bytes, or what a parquet file or the harvest gives; origin)."""

  reader: str  # a suffix of texts, how a trace's file is cut into records, or "harvest"
  option: str  # the text field, or the format of traces
  records: tuple[tuple[Any, str], ...]

  @property
  def bytes(self) -> int:
    """Size of what is bytes or text among the records."""
    return sum(_size(record) for record, _ in self.records)


def read_documents(paths: Paths, *, text_field: str = "text") -> Iterator[SourceDocument | Reject]:
  """Documents of files and folders (walked in sorted order): jsonl, jsonl.gz, jsonl.zst, parquet, txt, md, rst, html by suffix.

  Args:
    paths: what to read, in this order.
    text_field: the field of a JSON line, or column of a parquet file, that holds the text.

  Raises:
    DataError: no such path, an unknown suffix, or the first record of a file has no `text_field`.
    UndecodableError: a file is not what its suffix says.
  """
  for part in text_parts(paths, text_field=text_field):
    yield from (part,) if isinstance(part, Reject) else _texts(part)


def read_traces(paths: Paths, *, format: str = loaders.AUTO) -> Iterator[SourceTrace | Reject]:
  """Traces of files and folders (walked in sorted order), of our own records or of other people's (`traces.loaders`).

  Args:
    paths: jsonl and json, also as .gz and .zst; parquet; .traj; ArrayRecord, as `maxagent data generate` writes it.
    format: the format's name; "auto" looks at the first records of each file.

  Raises:
    ConfigError: no format of that name.
    DataError: no such path, or an unknown suffix.
    DamagedShardError: an ArrayRecord file is damaged.
    UndecodableError: a file is not what its suffix says.
  """
  for part in trace_parts(paths, format=format):
    yield from (part,) if isinstance(part, Reject) else _traces(part)


def text_parts(paths: Paths, *, text_field: str = "text") -> Iterator[Part | Reject]:
  """The files of `read_documents`, unparsed."""
  for path in files(paths, _TEXTS):
    if isinstance(path, Reject):
      yield path
      continue
    suffix = suffix_of(path, _TEXTS)
    if suffix == ".parquet":
      records = _parquet_column(path, text_field)
    elif suffix.startswith(".jsonl"):
      records = _checked_lines(path, text_field)
    else:
      records = iter([(path.read_bytes(), str(path))])
    yield from _parts(suffix, text_field, records)


def trace_parts(paths: Paths, *, format: str = loaders.AUTO) -> Iterator[Part | Reject]:
  """The files of `read_traces`, unparsed; their format is chosen."""
  for path in files(paths, loaders.SUFFIXES):
    if isinstance(path, Reject):
      yield path
      continue
    how = loaders.SUFFIXES[suffix_of(path, loaders.SUFFIXES)]
    yield from _parts(how, loaders.choose_format(_cut(_blobs(path, how), how), format), _blobs(path, how))


def harvest_parts(found: Iterable[SourceDocument | Reject]) -> Iterator[Part | Reject]:
  """What was harvested, as parts."""
  documents: list[tuple[Any, str]] = []
  for item in found:
    if isinstance(item, Reject):
      yield item
    else:
      documents.append((item, item.origin))
  yield from _parts("harvest", "", documents)


def items(part: Part) -> Iterator[Item | Reject]:
  """The documents or traces of a part."""
  if part.reader == "harvest":
    return (document for document, _ in part.records)
  return _traces(part) if part.reader in loaders.SUFFIXES.values() else _texts(part)


def _parts(reader: str, option: str, records: Iterable[tuple[Any, str]]) -> Iterator[Part]:
  held: list[tuple[Any, str]] = []
  room = _PART_BYTES
  for record in records:
    held.append(record)
    room -= _size(record[0])
    if room <= 0 or len(held) == _PART_RECORDS:
      yield Part(reader, option, tuple(held))
      held, room = [], _PART_BYTES
  if held:
    yield Part(reader, option, tuple(held))


def _size(record: Any) -> int:
  if isinstance(record, SourceDocument):
    return len(record.text)
  return len(record) if isinstance(record, bytes | str) else 0


def _texts(part: Part) -> Iterator[SourceDocument | Reject]:
  read = _TEXTS[part.reader]
  return (read(record, origin, part.option) for record, origin in part.records)


def _traces(part: Part) -> Iterator[SourceTrace | Reject]:
  for item in loaders.load(_cut(part.records, part.reader), part.option):
    if isinstance(item, loaders.Refused):
      yield Reject(item.origin, str(item.error), undecodable=item.undecodable)
    else:
      yield SourceTrace(item.trace, item.origin, part.option)


def _blobs(path: pathlib.Path, how: str) -> Iterator[tuple[Any, str]]:
  if how == "rows":
    return _parquet_rows(path)
  if how == "document":
    return iter([(b"".join(_blocks(path)), str(path))])
  return _array_records(path) if path.name.lower().endswith(".array_record") else json_lines(path)


def _cut(blobs: Iterable[tuple[Any, str]], how: str) -> Iterator[loaders.Record | loaders.Refused]:
  if how == "rows":
    return itertools.starmap(loaders.Record, blobs)
  return loaders.cut(blobs, "document" if how == "document" else "lines")


def _parquet_rows(path: pathlib.Path) -> Iterator[tuple[dict[str, Any], str]]:
  import pyarrow
  import pyarrow.parquet

  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      number = 0
      for batch in file.iter_batches():
        for row in batch.to_pylist():
          yield row, f"{path}:{number}"
          number += 1
  except (UnicodeDecodeError, pyarrow.ArrowException, OSError) as error:
    raise UndecodableError(f"{path} cannot be read as parquet ({error}); write it again.") from error


def suffix_of(path: pathlib.Path, known: Iterable[str]) -> str:
  """Which of the known endings a file has; "" for none."""
  return next((suffix for suffix in known if path.name.lower().endswith(suffix)), "")


def files(paths: Paths, known: Iterable[str]) -> Iterator[pathlib.Path | Reject]:
  """The files that are named, or lie in folders that are, with one of the known endings; others of a folder are rejects.

  Raises:
    DataError: no such path, an unknown ending, or a folder without any known one.
  """
  for given in map(pathlib.Path, paths):
    if given.is_dir():
      found = [path for path in sorted(given.rglob("*")) if path.is_file()]
      if not any(suffix_of(path, known) for path in found):
        raise DataError(f"folder {given} holds no file that ends in {', '.join(known)}; name the files or another folder.")
      for path in found:
        if path.name in ("index.json", "manifest.json"):  # beside what we wrote ourselves, and no document
          continue
        yield path if suffix_of(path, known) else Reject(str(path), f"its ending is none of {', '.join(known)}")
    elif not given.exists():
      raise DataError(f"{given} does not exist; name a file or a folder that does.")
    elif not suffix_of(given, known):
      raise DataError(f"{given} has an unknown suffix; expected one of {', '.join(known)}. Rename or convert it.")
    else:
      yield given


def _text(data: bytes, origin: str, text_field: str) -> SourceDocument | Reject:
  return decode_text(data, origin)


def _json_text(line: bytes, origin: str, text_field: str) -> SourceDocument | Reject:
  try:
    record = json.loads(line.decode("utf-8-sig"))
  except UnicodeDecodeError as error:
    return Reject(origin, f"not UTF-8: {error}", undecodable=True)
  except (ValueError, RecursionError) as error:
    return Reject(origin, f"not JSON: {error}")
  if not isinstance(record, dict):
    return Reject(origin, f"a JSON {type(record).__name__} where an object was expected")
  if text_field not in record:
    return Reject(origin, f"no field {text_field!r}; it has {', '.join(map(str, record))}")
  return _field(record[text_field], origin, text_field)


def _checked_lines(path: pathlib.Path, text_field: str) -> Iterator[tuple[bytes, str]]:
  """The lines, once the first object is seen to have the field: a wrong name is told before a terabyte is rejected."""
  checked = False
  for line, origin in json_lines(path):
    if not checked:
      try:
        record = json.loads(line.decode("utf-8-sig"))
      except (ValueError, RecursionError):
        record = None
      if isinstance(record, dict):
        checked = True
        if text_field not in record:
          raise _no_field(path, text_field, record)
    yield line, origin


def _parquet_column(path: pathlib.Path, text_field: str) -> Iterator[tuple[Any, str]]:
  import pyarrow  # 0.3 s, needed for this format alone
  import pyarrow.parquet

  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      names = file.schema_arrow.names
      if text_field not in names:
        raise _no_field(path, text_field, names)
      row = 0
      for batch in file.iter_batches(columns=[text_field]):
        for value in batch.column(0).to_pylist():
          yield value, f"{path}:{row}"
          row += 1
  except UnicodeDecodeError as error:
    raise UndecodableError(f"{path}: column {text_field!r} is not UTF-8 ({error}); store it as UTF-8 text.") from error
  except (pyarrow.ArrowException, OSError) as error:
    raise UndecodableError(f"{path} cannot be read as parquet ({error}); write it again.") from error


def _field(value: object, origin: str, text_field: str) -> SourceDocument | Reject:
  if isinstance(value, bytes):
    return decode_text(value, origin)
  if not isinstance(value, str):
    return Reject(origin, f"field {text_field!r} is a {type(value).__name__}, no text")
  return SourceDocument(value, origin)


def _no_field(path: pathlib.Path, text_field: str, present: Iterable[Any]) -> DataError:
  names = ", ".join(repr(str(name)) for name in present) or "none"
  return DataError(
    f"{path} has no field {text_field!r}; its fields are {names}. Name the one that holds the text (text_field)."
  )


def _html(data: bytes, origin: str, text_field: str) -> SourceDocument | Reject:
  import bs4  # 0.1 s, needed for this format alone
  import bs4.dammit

  declared = bs4.dammit.EncodingDetector.find_declared_encoding(data, is_html=True)
  item = decode_text(data, origin)
  if isinstance(item, Reject) and declared is not None:
    item = decode_text(data, origin, encoding=declared)
  if isinstance(item, Reject):
    return item
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a short page that looks like a file name, XML in HTML's clothes: read all the same
    return SourceDocument(_html_text(bs4.BeautifulSoup(item.text, "html.parser")), origin)


_HIDDEN_TAGS = ["script", "style", "noscript", "template", "head"]
_BLOCK_TAGS = (
  "address article aside blockquote br dd div dl dt figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr li main nav ol "
  "p pre section table tr ul"
).split()


def _html_text(soup: Any) -> str:
  """The visible text: a line per block, a blank line between paragraphs, `<pre>` as it stands."""
  title = soup.title.get_text().strip() if soup.title else ""
  for tag in soup.find_all(_HIDDEN_TAGS):
    tag.decompose()
  for string in soup.find_all(string=True):
    if string.find_parent("pre") is None:
      string.replace_with(type(string)(re.sub(r"\s+", " ", string)))
  for tag in soup.find_all(_BLOCK_TAGS):
    gap = "\n" if tag.name in ("br", "li", "tr", "dt", "dd") else "\n\n"
    tag.insert_before(gap)
    tag.insert_after("" if gap == "\n" else gap)
  text = re.sub(r"[ \t]+\n", "\n", f"{title}\n\n{soup.get_text()}")
  text = re.sub(r"\n (?=\S)", "\n", text)
  return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def json_lines(path: pathlib.Path) -> Iterator[tuple[bytes, str]]:
  """The lines of a plain or compressed file that are not blank, with `path:line`."""
  number = 0
  try:
    for number, line in enumerate(_lines(_blocks(path)), 1):
      if line.strip():
        yield line, f"{path}:{number}"
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise UndecodableError(f"{path} cannot be decompressed after line {number} ({error}); compress it again.") from error


def _blocks(path: pathlib.Path) -> Iterator[bytes]:
  if path.name.lower().endswith(".zst"):
    yield from _zst_blocks(path)
    return
  with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
    while block := file.read(_BLOCK_BYTES):
      yield block


def _zst_blocks(path: pathlib.Path) -> Iterator[bytes]:
  import zstandard

  frame = None
  with path.open("rb") as file:
    while block := file.read(_BLOCK_BYTES):
      # A file may be several frames, one after the other.
      while block:
        frame = frame or zstandard.ZstdDecompressor().decompressobj()
        try:
          yield frame.decompress(block)
        except zstandard.ZstdError as error:
          raise UndecodableError(f"{path} cannot be decompressed ({error}); compress it again.") from error
        block = frame.unused_data if frame.eof else b""
        frame = None if frame.eof else frame
  if frame is not None:
    raise UndecodableError(f"{path} ends in the middle of a zstd frame; copy or compress it again.")


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
  parts: list[bytes] = []
  for block in blocks:
    *ended, rest = block.split(b"\n")
    for line in ended:
      yield b"".join([*parts, line])
      parts = []
    parts.append(rest)
  if any(parts):
    yield b"".join(parts)


def _array_records(path: pathlib.Path) -> Iterator[tuple[bytes, str]]:
  from array_record.python.array_record_module import ArrayRecordReader

  record = 0
  try:
    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
    count = reader.num_records()
    if not reader.ok():
      raise RuntimeError("its index cannot be read")
    for record in range(count):
      yield reader.read([record])[0], f"{path}:{record}"
    reader.close()
  except (RuntimeError, ValueError, IndexError) as error:
    raise DamagedShardError(f"{path}, record {record}: {error}. Generate the episodes again.") from error


# What a record of a file with this suffix holds: (record, origin, text field) to a document.
_TEXTS: dict[str, Callable[[Any, str, str], SourceDocument | Reject]] = {
  ".jsonl": _json_text,
  ".jsonl.gz": _json_text,
  ".jsonl.zst": _json_text,
  ".parquet": _field,
  ".txt": _text,
  ".md": _text,
  ".rst": _text,
  ".html": _html,
  ".htm": _html,
}
