"""What `data inspect` shows: a batch of a run as training reads it, or the documents of a split as they are stored."""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from maxagent.cli.schedule_read import phases, schedule_charts
from maxagent.cli.token_records import batch_rows, batch_tallies, stored_document, target_weights
from maxagent.config import Config, Objective
from maxagent.data.batch import Batch
from maxagent.data.pipeline import open_pipeline
from maxagent.data.shards import INDEX_FILE, ShardIndex, TokenShards, open_shards, read_index
from maxagent.errors import ConfigError, DataError, TokenizerError
from maxagent.objectives.weights import supervised_table, weight_table
from maxagent.tokenizer import Tokenizer
from maxagent.tracking.charts import compact
from maxagent.tracking.rows import Inspection, Row, Tally
from maxagent.tracking.shares import said

_TOKENIZERS = ("tokenizer.model", "tokenizer.json")
_REJECTS = "rejects.jsonl"
_MOST_REASONS = 20
_REASON_WORDS = 3  # that the reasons of one kind begin with


def inspect_batch(config: Config, *, step: int, rows: int, workdir: pathlib.Path | None, charts: bool) -> Inspection:
  """The batch that training reads at `step`, its first `rows` rows token by token; with `charts` the schedule too.

  Raises:
    ConfigError, DataError: as `open_pipeline`.
  """
  tokenizer = Tokenizer.load(config.data.tokenizer)
  with closing(
    open_pipeline(config.data, tokenizer.digest, rows=range, supervised=supervised_table(config.objective))
  ) as pipeline:
    batch = next(itertools.islice(pipeline, step - 1, None))
    read = pipeline.report()
  names = [source.name for source in config.data.sources]
  weights = target_weights(batch.roles, batch.statuses, batch.flags, weight_table(config.objective, step - 1))
  tallies = batch_tallies(batch, weights, names)
  drawn, origin = schedule_charts(config, tokenizer.digest, workdir) if charts else ((), "")
  realised = ", ".join(f"{name} {share:.1%}" for name, share in read["realised"].items())
  shares = (*said(phases(config), config.data.shares_of), f"Content tokens read up to this step: {realised}.")
  shown = min(rows, len(batch.tokens))
  return Inspection(
    title=config.name, subtitle=f"The batch of step {step:,}, {shown} of its {len(batch.tokens)} rows token by token",
    facts=_facts(batch, tallies),
    rows=tuple(batch_rows(batch, weights, names, tokenizer, rows)),
    tallies=tuple(tallies),
    shares=(*shares, origin) if charts else shares,
    charts=tuple(drawn),
  )  # fmt: skip


def _facts(batch: Batch, tallies: Sequence[Tally]) -> tuple[tuple[str, str, str], ...]:
  """What stands on top: of all rows, not only of those that are shown."""
  used, places = int(np.sum(batch.segments > 0)), batch.segments.size
  targets = sum(tally.targets for tally in tallies)
  supervised, weight = (sum(getattr(tally, name) or 0 for tally in tallies) for name in ("supervised", "weight"))
  documents = int(batch.segments.max(axis=1).sum())
  return (
    ("Tokens", f"{used:,}", f"in {len(batch.tokens)} rows, {used / places:.1%} full"),
    ("Supervised", f"{supervised / max(1, targets):.1%}", f"of {targets:,} targets"),
    ("Mean weight", f"{weight / max(1, targets):.3g}", "of a target in the loss"),
    ("Documents", f"{documents:,}", "or pieces of them"),
  )


def inspect_shards(
  folder: pathlib.Path, *, first: int, count: int, tokenizer: pathlib.Path | None, config: Config | None
) -> Inspection:
  """Documents of a split, with what its build counted; weights are those of the config's objective, else of pre-training.

  Raises:
    DataError: `folder` is neither a split nor holds one.
    ConfigError: it has no document of number `first`.
    TokenizerError: no tokenizer was named and none lies beside it; or the named one did not make it.
  """
  split = folder if (folder / INDEX_FILE).exists() else folder / "train"
  index = read_index(split)
  if not 0 <= first < max(1, index.documents):
    raise ConfigError(f"--first is {first}; {split} has documents 0 to {index.documents - 1}.")
  found = _tokenizer(split, index, tokenizer)
  table = weight_table(config.objective if config else Objective())
  with closing(open_shards(split, tokenizer_digest=found.digest)) as shards:
    rows = tuple(_stored_rows(shards, range(first, min(first + count, len(shards))), table, found))
  of_all = f"{len(rows)} of {index.documents:,} documents token by token"
  return Inspection(
    title=str(folder), subtitle=f"{index.kind} shards, {split.name}: {of_all}",
    facts=(
      ("Tokens", compact(index.tokens, digits=3), f"{index.bytes / max(1, index.tokens):.2f} bytes of text each"),
      ("Documents", f"{index.documents:,}", f"{index.tokens / max(1, index.documents):,.0f} tokens each, on average"),
      ("Text", f"{compact(index.bytes, digits=3)}B", "in UTF-8"),
      ("Vocabulary", f"{index.vocab_size:,}", f"{len(index.shards)} files, {index.streams} streams"),
    ),
    rows=rows,
    tallies=tuple(Tally(source=index.kind, role=role, targets=n) for role, n in index.role_tokens.items()),
    counts=index.counts,
    rejects=tuple(reject_reasons(split.parent / _REJECTS)),
  )  # fmt: skip


def _stored_rows(shards: TokenShards, numbers: range, table: Any, tokenizer: Tokenizer) -> Iterator[Row]:
  for number in numbers:
    stored = shards[number]
    weights = target_weights(stored.roles[None], stored.statuses[None], stored.flags[None], table)[0]
    yield Row(title=f"Document {number:,}", documents=(stored_document(stored, weights, shards.index.kind, tokenizer),))


def _tokenizer(split: pathlib.Path, index: ShardIndex, named: pathlib.Path | None) -> Tokenizer:
  """The one that was named, else the one with the index's digest among those beside the shards."""
  if named is not None:
    return Tokenizer.load(named)
  home = split.resolve().parent
  for path in (
    path for name in _TOKENIZERS for path in (home / name, home.parent / name, *sorted(home.parent.glob(f"*/{name}")))
  ):
    with contextlib.suppress(TokenizerError):  # another file of that name is none of ours to judge
      if path.is_file() and (tokenizer := Tokenizer.load(path)).digest == index.tokenizer:
        return tokenizer
  raise TokenizerError(
    f"{split} was made with the tokenizer {index.tokenizer}, which is no {_TOKENIZERS[0]} beside it; name it with --tokenizer."
  )


def reject_reasons(path: pathlib.Path) -> list[tuple[str, int]]:
  """Why documents were left out, by what their reasons have in common, the most frequent first; nothing without the file.

  Example: `nearly the same as a.txt` and `nearly the same as b.txt` give (`nearly the same as …`, 2).

  Raises:
    DataError: a line that is no rejected document.
  """
  if not path.is_file():
    return []
  groups: dict[tuple[str, ...], tuple[int, list[str], bool]] = {}
  with path.open(encoding="utf-8") as file:
    for number, line in enumerate(file, start=1):
      try:
        words = str(json.loads(line)["reason"]).split()
      except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}, line {number}: not a rejected document ({error!r}); build the data again.") from error
      count, shared, same = groups.get(tuple(words[:_REASON_WORDS]), (0, words, True))
      kept = [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(shared, words, strict=False))]
      groups[tuple(words[:_REASON_WORDS])] = (count + 1, kept, same and kept == shared == words)
  counted = sorted(
    ((" ".join(kept + ([] if same else ["…"])), n) for n, kept, same in groups.values()), key=lambda g: (-g[1], g[0])
  )
  rest = sum(count for _, count in counted[_MOST_REASONS:])
  return counted[:_MOST_REASONS] + ([("other reasons", rest)] if rest else [])
