"""`maxagent data build`: documents or traces into token shards."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from maxagent.cli.arguments import at_least, numbers, or_off, path, readable

if TYPE_CHECKING:
  from maxagent.tokenizer import Tokenizer

HELP = "turn text or traces into shards that training reads"
DESCRIPTION = """\
Reads documents, drops duplicates, removes secrets, encodes what remains and writes DIR/train and DIR/heldout. What was
rejected lies in DIR/rejects.jsonl with the reason. A build that was killed goes on where it was: start it again.

  --kind=web     text: jsonl, jsonl.gz, jsonl.zst, parquet, txt, md, html; without FILES this machine's Python documentation
  --kind=trace   agent traces: folders of `maxagent data generate`, or files of the formats below
                 {formats}
  --kind=tokens  ids that --tokenizer made: npy, bin, jsonl, parquet
"""


def add_parser(verbs: Any) -> None:
  """Adds this verb to `maxagent data`."""
  from maxagent.traces.loaders import formats

  parser = verbs.add_parser(
    "build",
    help=HELP,
    description=DESCRIPTION.format(formats=", ".join(formats())),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("inputs", nargs="*", type=path, metavar="FILES", help="files or folders, read in sorted order")
  parser.add_argument("--kind", required=True, choices=("web", "trace", "tokens"), help="what the files hold")
  parser.add_argument("--output", required=True, type=path, metavar="DIR", help="folder for the shards")
  parser.add_argument(
    "--tokenizer", type=readable, metavar="FILE", help="sentencepiece or tokenizer.json; without it one is trained into DIR"
  )
  parser.add_argument(
    "--vocab-size", type=at_least(1), metavar="V", help="of a tokenizer trained here (default 2048, or less for little text)"
  )
  parser.add_argument("--format", default="auto", metavar="NAME", help="of traces (default auto: by each file's first records)")
  parser.add_argument("--text-field", default="text", metavar="NAME", help="field of jsonl and parquet records (default text)")
  parser.add_argument(
    "--byte-cap", type=at_least(1), default=12_000_000, metavar="N", help="of harvested documentation (default 12 MB)"
  )
  parser.add_argument(
    "--streams",
    type=at_least(1),
    default=64,
    metavar="V",
    help="virtual streams; divides or is divided by the batch (default 64)",
  )
  parser.add_argument(
    "--heldout", type=int, default=20, metavar="PERMILLE", help="documents held out, chosen by hash (default 20)"
  )
  parser.add_argument(
    "--processes", type=at_least(1), metavar="N", help="that read and encode (default: one for each core, few for little data)"
  )
  tokens = parser.add_argument_group("files of ids (--kind=tokens)")
  tokens.add_argument("--ids-field", default="input_ids", metavar="NAME", help="of jsonl and parquet (default input_ids)")
  tokens.add_argument("--dtype", metavar="TYPE", help="of .bin: uint16, uint32, int32 or int64")
  tokens.add_argument(
    "--split-at", type=numbers, default=(), metavar="ID,...", help="ids that end a document, such as the end of text; left out"
  )
  tokens.add_argument(
    "--agreement",
    type=float,
    default=0.95,
    metavar="SHARE",
    help="of ids that must come back when encoded again (default 0.95)",
  )
  tokens.add_argument("--allow-reserved", action="store_true", help="take documents that hold ids of the reserved block")
  safety = parser.add_argument_group("what should not be learned", "Each is counted; the counts stand in the index.")
  safety.add_argument("--keep-secrets", action="store_true", help="leave keys, tokens and passwords where they are")
  safety.add_argument(
    "--near-duplicates",
    type=or_off(float),
    default=0.8,
    metavar="SIMILARITY",
    help="drop documents that share this much of their word 5-grams with an earlier one, or off (default 0.8)",
  )
  safety.add_argument(
    "--exclude",
    action="append",
    default=[],
    metavar="NAME=FILE",
    help="a test set (jsonl, json, txt): documents with 13 words in a row of it are dropped; may be given again",
  )
  safety.add_argument(
    "--contaminated", choices=("reject", "count"), default="reject", help="what becomes of those documents (default reject)"
  )
  safety.add_argument(
    "--repeats",
    type=or_off(at_least(2)),
    default=32,
    metavar="N",
    help="mute 1 to 13 tokens that come N times in a row, or off (default 32)",
  )
  parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
  """Builds and prints what was read, kept and left out."""
  from maxagent.data.build import BuildOptions, build
  from maxagent.data.safety import EvaluationSet, SafetyOptions
  from maxagent.data.tokens import TokenOptions
  from maxagent.errors import ConfigError
  from maxagent.tracking.progress import Counter

  options = BuildOptions(
    text_field=arguments.text_field,
    format=arguments.format,
    heldout_per_mille=arguments.heldout,
    streams=arguments.streams,
    byte_cap=arguments.byte_cap,
    processes=arguments.processes or getattr(os, "process_cpu_count", os.cpu_count)() or 1,
    tokens=TokenOptions(
      field=arguments.ids_field,
      dtype=arguments.dtype,
      split_at=arguments.split_at,
      allow_reserved=arguments.allow_reserved,
      agreement=arguments.agreement,
    ),
    safety=SafetyOptions(
      secrets=not arguments.keep_secrets,
      near_duplicates=arguments.near_duplicates,
      evaluation_sets=tuple(map(EvaluationSet.parse, arguments.exclude)),
      contaminated=arguments.contaminated,
      repeats=arguments.repeats,
    ),
  )
  if arguments.kind == "trace" and not arguments.inputs:
    raise ConfigError("--kind=trace needs folders of traces; name some, or write them with `maxagent data generate`.")
  if arguments.kind == "tokens" and arguments.tokenizer is None:
    raise ConfigError("--kind=tokens needs --tokenizer: the one that made the ids.")
  tokenizer = _tokenizer(arguments)
  with Counter("documents") as counter:
    summary = build(
      arguments.kind,
      arguments.output,
      arguments.inputs,
      tokenizer=tokenizer,
      options=options,
      progress=lambda documents, tokens: counter.update(documents, None),
    )
  if summary.units_found:
    print(f"went on with a build that was cut short: {summary.units_found} of its parts were ready")
  print("  ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in summary.counts.items()))
  for name, split in (("train", summary.train), ("heldout", summary.heldout)):
    print(f"{name:<8} {split.documents:,} documents, {split.tokens:,} tokens")
  if not summary.heldout.documents:
    print("nothing is held out, so training on this alone is refused: add documents, or raise --heldout")
  if summary.counts["rejected"]:
    print(f"what was rejected, and why: {arguments.output / 'rejects.jsonl'}")
  return 0


def _tokenizer(arguments: argparse.Namespace) -> Tokenizer:
  """The one named, or one trained on the inputs."""
  from maxagent.cli.data_tokenizer import trace_texts, web_texts
  from maxagent.tokenizer import Tokenizer, train

  if arguments.tokenizer is not None:
    return _told(Tokenizer.load(arguments.tokenizer))
  path = arguments.output / "tokenizer.model"
  texts = (
    web_texts(arguments.inputs, arguments.text_field)
    if arguments.kind == "web"
    else trace_texts(arguments.inputs, arguments.format)
  )
  print(f"training a tokenizer: {path}")
  asked = arguments.vocab_size
  return _told(train(texts, path, vocab_size=asked or 2048, at_most=asked is None))


def _told(tokenizer: Tokenizer) -> Tokenizer:
  print(f"the tokenizer has {tokenizer.vocab_size} tokens: train with --config.model.vocab_size={tokenizer.vocab_size}")
  return tokenizer
