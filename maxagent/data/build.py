"""Sources to encoded shards: duplicates removed, held-out documents chosen by hash, everything counted.

OUTPUT/train, OUTPUT/heldout   the splits (see shards)
OUTPUT/rejects.jsonl           what was not read: {"origin", "reason", "undecodable"} per line
OUTPUT/manifest.json           of a harvest: what was found, with a digest
OUTPUT/.unfinished             of a build that is under way

Any number of processes prepare the documents, a unit of some megabytes at a time (see `prepare`); one puts them in order. A
unit's result is kept in `.unfinished` under the digest of its records, so a build that was killed, started again, prepares only
what is left. The shards are the same bytes however often it was killed and whatever number of processes worked on them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

import maxagent
from maxagent.data.harvest import BYTE_CAP, harvest
from maxagent.data.prepare import Prepared, Preparer, Unit, pack, unit_key, unpack
from maxagent.data.safety import SafetyOptions, count_names
from maxagent.data.shards import FORMAT_VERSION, ShardIndex, ShardWriter, file_digest
from maxagent.data.source_items import PART_BYTES, Reject
from maxagent.data.sources import Part, Paths, harvest_parts, text_parts, trace_parts
from maxagent.data.tokens import TokenOptions, token_parts
from maxagent.errors import ConfigError, DataError, EmptySourceError, UndecodableError
from maxagent.tokenizer import Tokenizer
from maxagent.traces import loaders
from maxagent.traces.schema import RESERVED

if TYPE_CHECKING:
  from maxagent.data.safety.duplicates import NearDuplicates

KINDS = ("web", "trace", "tokens")
SPLITS = ("train", "heldout")
UNFINISHED = ".unfinished"  # subfolder of a build that is under way; what stood there before stays until its end
_UNIT_BYTES = 2 << 20  # of records: enough to keep a tokenizer's threads busy, little enough to hold
_FEW_UNITS = 4  # so few are prepared here: starting processes takes longer
_AHEAD = 3  # units that are under way or wait to be written, per process
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions:
  """How documents become shards."""

  text_field: str = "text"  # of JSON lines and parquet
  format: str = loaders.AUTO  # of traces
  heldout_per_mille: int = 20  # documents kept from training: of 10 MB of text about 60k tokens, of 12k episodes 240
  streams: int = 64  # virtual streams; they and the rows per step must divide one another
  part_bytes: int = PART_BYTES  # a longer text is cut at paragraph ends
  shard_tokens: int = 1 << 26  # a shard is closed at this size, about 130 MB
  byte_cap: int = BYTE_CAP  # of a harvest
  tokens: TokenOptions = dataclasses.field(default_factory=TokenOptions)
  safety: SafetyOptions = dataclasses.field(default_factory=SafetyOptions)
  processes: int = 1  # that prepare documents; more than one needs a main module that can be imported (`if __name__ ...`)

  def __post_init__(self) -> None:
    if not 0 <= self.heldout_per_mille < 1000:
      raise ConfigError(f"heldout_per_mille is {self.heldout_per_mille}; expected 0 to 999 documents of a thousand.")
    for name in ("streams", "part_bytes", "shard_tokens", "byte_cap", "processes"):
      if getattr(self, name) < (4 if name == "part_bytes" else 1):
        raise ConfigError(f"{name} is {getattr(self, name)}; expected {4 if name == 'part_bytes' else 1} or more.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSummary:
  """What a build wrote."""

  kind: str
  output: str
  train: ShardIndex
  heldout: ShardIndex
  counts: dict[str, int]
  units_found: int  # that a killed build had left ready


def build(
  kind: str,
  output: str | os.PathLike[str],
  inputs: Paths = (),
  *,
  tokenizer: Tokenizer,
  options: BuildOptions | None = None,
  progress: Progress | None = None,
) -> BuildSummary:
  """Encodes sources into OUTPUT/train and OUTPUT/heldout; an earlier build there is replaced once this one is whole.

  Args:
    kind: "web" (text), "trace", or "tokens" (text that is ids already).
    output: the folder to write.
    inputs: files and folders, see `sources`; for "web", none means the texts of this machine's Python (`harvest`).
    tokenizer: whose ids are written; those of "tokens" are its own.
    options: see `BuildOptions`.
    progress: called with (documents read, tokens written) now and then.

  Raises:
    ConfigError: an unknown kind, or one without inputs that needs them.
    TokenizerMismatchError: the ids of "tokens" are another tokenizer's.
    EmptySourceError: no document remains.
    UndecodableError: none remains, and undecodable bytes are among the reasons.
  """
  options = options or BuildOptions()
  folder = pathlib.Path(output)
  parts = _parts(kind, folder, inputs, tokenizer, options)
  unfinished = folder / UNFINISHED
  for split in SPLITS:
    shutil.rmtree(unfinished / split, ignore_errors=True)
  (unfinished / "units").mkdir(parents=True, exist_ok=True)
  store = _Store(unfinished / "units", _fingerprint(tokenizer, options))
  builder = _Builder(kind, unfinished, tokenizer, options)
  with (folder / "rejects.jsonl").open("w", encoding="utf-8") as rejects:
    for number, prepared in enumerate(_prepared(_units(parts), store, tokenizer, options), 1):
      reject = builder.add(prepared)
      if reject is not None:
        rejects.write(json.dumps(dataclasses.asdict(reject)) + "\n")
      if progress is not None and number % 100 == 0:
        progress(number, builder.tokens)
    train, heldout = builder.finish(folder)
  for split in SPLITS:
    shutil.rmtree(folder / split, ignore_errors=True)
    (unfinished / split).rename(folder / split)
  shutil.rmtree(unfinished)
  if progress is not None:
    progress(builder.counts["read"], builder.tokens)
  counts = dict(builder.counts)
  return BuildSummary(kind=kind, output=str(folder), train=train, heldout=heldout, counts=counts, units_found=store.found)


def _parts(
  kind: str, folder: pathlib.Path, inputs: Paths, tokenizer: Tokenizer, options: BuildOptions
) -> Iterable[Part | Reject]:
  if kind not in KINDS:
    raise ConfigError(f"kind is {kind!r}; expected {' or '.join(KINDS)}.")
  if kind == "trace":
    if not inputs:
      raise ConfigError("kind is 'trace' and no input is named; give a folder that `maxagent data generate` wrote.")
    return trace_parts(inputs, format=options.format)
  if kind == "tokens":
    if not inputs:
      raise ConfigError("kind is 'tokens' and no input is named; give files of ids.")
    return token_parts(inputs, tokenizer=tokenizer, options=options.tokens)
  return text_parts(inputs, text_field=options.text_field) if inputs else _harvested(folder, options)


def _harvested(folder: pathlib.Path, options: BuildOptions) -> Iterator[Part | Reject]:
  harvested = harvest(options.byte_cap)
  (folder / "manifest.json").write_text(json.dumps(harvested.manifest, indent=1), encoding="utf-8")
  yield from harvest_parts(harvested.items)


def _units(parts: Iterable[Part | Reject]) -> Iterator[Unit]:
  unit: list[Part | Reject] = []
  size = 0
  for part in parts:
    unit.append(part)
    size += 1 if isinstance(part, Reject) else part.bytes
    if size >= _UNIT_BYTES:
      yield unit
      unit, size = [], 0
  if unit:
    yield unit


def _fingerprint(tokenizer: Tokenizer, options: BuildOptions) -> bytes:
  """All that a unit's result depends on besides its records."""
  sets = [file_digest(s.path) for s in options.safety.evaluation_sets if os.path.isfile(s.path)]
  how = [maxagent.__version__, FORMAT_VERSION, tokenizer.digest, options.part_bytes, dataclasses.asdict(options.safety), sets]
  return json.dumps(how).encode()


class _Store:
  """Results of units, each in a file of its own; `found` counts those that were there already."""

  def __init__(self, folder: pathlib.Path, fingerprint: bytes) -> None:
    self._folder = folder
    self._fingerprint = fingerprint
    self.found = 0

  def path(self, unit: Unit) -> pathlib.Path:
    """Where the result of a unit is kept."""
    return self._folder / unit_key(unit, self._fingerprint)

  def get(self, path: pathlib.Path) -> list[Prepared] | None:
    """A result that is there and whole."""
    prepared = unpack(path.read_bytes()) if path.is_file() else None
    self.found += prepared is not None
    return prepared

  def has(self, path: pathlib.Path) -> bool:
    """Whether there is a result, and it is whole."""
    return self.get(path) is not None


def _prepared(units: Iterator[Unit], store: _Store, tokenizer: Tokenizer, options: BuildOptions) -> Iterator[Prepared]:
  """What became of every document, in order."""
  few = list(itertools.islice(units, _FEW_UNITS))
  units = itertools.chain(few, units)
  if options.processes > 1 and len(few) == _FEW_UNITS:
    yield from _prepared_by_many(units, store, tokenizer, options)
    return
  preparer = Preparer(tokenizer, options.safety, part_bytes=options.part_bytes)
  for unit in units:
    path = store.path(unit)
    yield from store.get(path) or _kept(path, preparer(unit))


def _prepared_by_many(units: Iterator[Unit], store: _Store, tokenizer: Tokenizer, options: BuildOptions) -> Iterator[Prepared]:
  under_way: collections.deque[tuple[pathlib.Path, concurrent.futures.Future[None] | None]] = collections.deque()
  pool = concurrent.futures.ProcessPoolExecutor(
    options.processes, multiprocessing.get_context("spawn"), _start, (tokenizer, options.safety, options.part_bytes)
  )
  try:
    while True:
      for unit in itertools.islice(units, _AHEAD * options.processes - len(under_way)):
        path = store.path(unit)
        under_way.append((path, None if store.has(path) else pool.submit(_prepare, path, unit)))
      if not under_way:
        return
      path, future = under_way.popleft()
      if future is not None:
        future.result()
      if (found := unpack(path.read_bytes())) is None:
        raise DataError(f"{path} was written and then changed; build the data again.")
      yield from found
  except BrokenProcessPool as error:
    raise DataError(
      "a process of the build was ended from outside, mostly for want of memory; start the build again with fewer processes: "
      "it goes on where it was."
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


def _kept(path: pathlib.Path, prepared: list[Prepared]) -> list[Prepared]:
  partial = path.with_suffix(f".{os.getpid()}")
  partial.write_bytes(pack(prepared))
  partial.replace(path)
  return prepared


_make_preparer: Callable[[], Preparer]  # of a process of the pool


def _start(tokenizer: Tokenizer, safety: SafetyOptions, part_bytes: int) -> None:
  global _make_preparer
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process answers it
  # Made at the first unit: what is raised here would only be told as the end of the process.
  _make_preparer = functools.cache(functools.partial(Preparer, tokenizer, safety, part_bytes=part_bytes, threads=1))


def _prepare(path: pathlib.Path, unit: Unit) -> None:
  _kept(path, _make_preparer()(unit))


class _Builder:
  """Accepts documents one by one, in order: counts, removes duplicates, chooses the split, writes."""

  def __init__(self, kind: str, folder: pathlib.Path, tokenizer: Tokenizer, options: BuildOptions) -> None:
    names = ("read", "duplicates", "rejected", "undecodable", "reserved_spellings", *count_names(options.safety))
    self.counts = collections.Counter(dict.fromkeys(names, 0))
    self.tokens = 0
    stored = "trace" if kind == "trace" else "web"  # ids that were given are text, and training may cut it
    self._writers = {
      split: ShardWriter(
        folder / split, kind=stored, tokenizer_digest=tokenizer.digest, vocab_size=tokenizer.vocab_size,
        first_reserved=tokenizer.id(RESERVED[0]), streams=options.streams, shard_tokens=options.shard_tokens,
      )
      for split in SPLITS
    }  # fmt: skip
    self._holdout = _Holdout(options.heldout_per_mille)
    self._seen: set[bytes] = set()
    self._near: NearDuplicates | None = None
    if options.safety.near_duplicates is not None:
      from maxagent.data.safety.duplicates import NearDuplicates

      self._near = NearDuplicates(options.safety.near_duplicates)

  def add(self, prepared: Prepared) -> Reject | None:
    """Takes a document; returns why not, if it is not taken."""
    self.counts["read"] += 1
    if prepared.digest in self._seen:
      self.counts["duplicates"] += 1
      return None
    if prepared.digest:
      self._seen.add(prepared.digest)
    reject = prepared.reject
    if reject is None and self._near is not None and (earlier := self._near.find(prepared.signature, prepared.origin)):
      self.counts.update(["near_duplicates", "rejected"])
      return Reject(prepared.origin, f"nearly the same as {earlier}")
    self.counts.update(prepared.counts)
    if reject is None:
      self._write(self._holdout.place(prepared))
    else:
      self.counts.update(rejected=1, undecodable=reject.undecodable)
    return reject

  def finish(self, output: pathlib.Path) -> tuple[ShardIndex, ShardIndex]:
    """Writes the indices of train and heldout; `output` is named if there is nothing to write."""
    self._write(self._holdout.rest())
    if not self.tokens:
      self._raise_empty(output)
    train, heldout = (self._writers[split].close(dict(self.counts)) for split in SPLITS)
    return train, heldout

  def _write(self, placed: Sequence[tuple[Prepared, str]]) -> None:
    for prepared, split in placed:
      for document, size in zip(prepared.documents, prepared.text_bytes, strict=True):
        self._writers[split].add(document, size)
        self.tokens += len(document)

  def _raise_empty(self, output: pathlib.Path) -> None:
    counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in self.counts.items())
    error = UndecodableError if self.counts["undecodable"] else EmptySourceError
    raise error(f"no document remains for {output} ({counts}); the reasons are in {output / 'rejects.jsonl'}.")


class _Holdout:
  """Chooses held-out documents by hash; there is one at least, unless all there is is one short document."""

  def __init__(self, per_mille: int) -> None:
    self._per_mille = per_mille
    self._trained = 0
    self._candidate: Prepared | None = None  # while nothing is held out, the document with the lowest hash so far waits here
    self._found = per_mille == 0

  def place(self, prepared: Prepared) -> list[tuple[Prepared, str]]:
    """The documents whose split is now known."""
    if prepared.place % 1000 < self._per_mille:
      self._found = True
      return [*self._release(), (prepared, "heldout")]
    if self._found or (self._candidate is not None and self._candidate.place <= prepared.place):
      self._trained += 1
      return [(prepared, "train")]
    released = self._release()
    self._candidate = prepared
    return released

  def rest(self) -> list[tuple[Prepared, str]]:
    """The document that still waits, at the end. If it is the only one, its last part is held out."""
    waiting = self._candidate
    if waiting is None or self._found:
      return self._release()
    if self._trained:
      return [(waiting, "heldout")]
    if len(waiting.documents) > 1:
      return [(_cut(waiting, slice(None, -1)), "train"), (_cut(waiting, slice(-1, None)), "heldout")]
    return self._release()

  def _release(self) -> list[tuple[Prepared, str]]:
    if self._candidate is None:
      return []
    released, self._candidate = self._candidate, None
    self._trained += 1
    return [(released, "train")]


def _cut(prepared: Prepared, parts: slice) -> Prepared:
  return dataclasses.replace(prepared, documents=prepared.documents[parts], text_bytes=prepared.text_bytes[parts])
