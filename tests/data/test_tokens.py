"""Data that is ids already: streams and lists, in every form that others write."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from maxagent.data import tokens as reading
from maxagent.data.build import BuildOptions, BuildSummary, build
from maxagent.data.safety import SafetyOptions
from maxagent.data.shards import open_shards
from maxagent.data.tokens import TokenOptions
from maxagent.errors import ConfigError, DataError, EmptySourceError, TokenizerMismatchError, UndecodableError
from maxagent.tokenizer import Tokenizer, train
from maxagent.traces.schema import Role

ROOT = pathlib.Path(__file__).resolve().parents[2]
END = 5  # plays the tokenizer's own end of text
TEXTS = [f"document {n}: the fox number {n * 7} jumps over dog {n * n}" for n in range(60)]
Build = Callable[..., BuildSummary]


@pytest.fixture
def ids(tokenizer: Tokenizer) -> list[list[int]]:
  return tokenizer.encode_batch(TEXTS)


@pytest.fixture
def build_tokens(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> Build:
  def make(path: pathlib.Path, *, heldout: int = 100, part_bytes: int = 16_384, **how: object) -> BuildSummary:
    options = BuildOptions(
      heldout_per_mille=heldout,
      part_bytes=part_bytes,
      tokens=TokenOptions(**how),  # type: ignore[arg-type]
      safety=SafetyOptions(near_duplicates=None),
    )
    return build("tokens", tmp_path / "out", [path], tokenizer=tokenizer, options=options)

  return make


def stored(summary: BuildSummary) -> list[list[int]]:
  """All documents, held out and not, without the tokens around them, which are proven to be ours."""
  found = []
  for split, index in (("train", summary.train), ("heldout", summary.heldout)):
    shards = open_shards(pathlib.Path(summary.output) / split)
    for number in range(len(shards)):
      document = shards[number]
      assert (document.ids[0], document.ids[-1]) == (index.first_reserved, index.first_reserved + 1)
      assert document.roles.tolist() == [Role.MARKER, *[Role.WEB] * (len(document) - 2), Role.MARKER]
      found.append(document.ids[1:-1].tolist())
  return found


def stream(ids: Sequence[Sequence[int]], *, first: bool = False) -> np.ndarray:
  """Documents in a row, each with END after or before it."""
  return np.array([token for document in ids for token in ([END, *document] if first else [*document, END])])


def write(path: pathlib.Path, ids: list[list[int]]) -> dict[str, object]:
  """The documents as a file of the path's ending; how to read it."""
  if path.name == "rows.npy":
    np.save(path, np.array([row[:10] for row in ids], np.int64))
    return {}
  if path.suffix == ".npy":
    np.save(path, stream(ids).astype(np.uint16))
    return {"split_at": (END,)}
  if path.suffix == ".bin":
    stream(ids, first="first" in path.name).astype(path.stem.split("_")[0]).tofile(path)
    return {"split_at": (END,), "dtype": path.stem.split("_")[0]}
  if path.suffix == ".parquet":
    kind = pyarrow.large_list(pyarrow.int64()) if path.stem == "large" else pyarrow.list_(pyarrow.int32())
    pyarrow.parquet.write_table(pyarrow.table({"ids": pyarrow.array(ids, kind), "n": range(len(ids))}), path, row_group_size=7)
    return {"field": "ids"}
  path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids))
  return {}


@pytest.mark.parametrize(
  "name", ["a.npy", "uint16.bin", "uint16_first.bin", "uint32.bin", "int32.bin", "a.jsonl", "a.parquet", "large.parquet"]
)
def test_every_form_keeps_the_ids_of_every_document(
  name: str, tmp_path: pathlib.Path, ids: list[list[int]], build_tokens: Build
) -> None:
  summary = build_tokens(tmp_path / name, **write(tmp_path / name, ids))
  assert sorted(stored(summary)) == sorted(ids)
  assert summary.heldout.documents > 0
  assert summary.counts["read"] == len(TEXTS) and summary.counts["rejected"] == 0
  assert summary.train.bytes + summary.heldout.bytes == sum(len(text.encode()) for text in TEXTS)
  assert summary.train.kind == "web"  # so that training may cut it


def test_the_rows_of_a_table_are_documents(tmp_path: pathlib.Path, ids: list[list[int]], build_tokens: Build) -> None:
  summary = build_tokens(tmp_path / "rows.npy", **write(tmp_path / "rows.npy", ids))
  assert sorted(stored(summary)) == sorted({tuple(row[:10]): row[:10] for row in ids}.values())


def test_the_same_split_is_chosen_as_for_the_text(
  tmp_path: pathlib.Path, ids: list[list[int]], build_tokens: Build, tokenizer: Tokenizer
) -> None:
  (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
  options = BuildOptions(heldout_per_mille=100, safety=SafetyOptions(near_duplicates=None))
  texts = build("web", tmp_path / "web", [tmp_path / "t.jsonl"], tokenizer=tokenizer, options=options)
  as_ids = build_tokens(tmp_path / "a.npy", **write(tmp_path / "a.npy", ids))
  assert stored(texts) == stored(as_ids)


def test_duplicates_empty_documents_and_long_ones(
  tmp_path: pathlib.Path, ids: list[list[int]], build_tokens: Build, tokenizer: Tokenizer
) -> None:
  long = tokenizer.encode("the quick brown fox jumps over the lazy dog " * 40)
  np.save(tmp_path / "a.npy", stream([ids[0], [], ids[1], ids[0], [], [], long]))
  summary = build_tokens(tmp_path / "a.npy", split_at=(END,), heldout=0, part_bytes=400)
  assert summary.counts["duplicates"] == 1 and summary.counts["read"] == 4
  documents = stored(summary)
  assert documents[:2] == ids[:2] and max(map(len, documents)) == 100
  assert [token for part in documents[2:] for token in part] == long
  assert summary.train.bytes == sum(len(text.encode()) for text in (*TEXTS[:2], tokenizer.decode(long)))


def test_documents_that_cross_the_borders_of_a_scan_stay_whole(
  tmp_path: pathlib.Path, ids: list[list[int]], build_tokens: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
  how = write(tmp_path / "a.npy", ids)
  longest = max(map(len, ids))
  for scan in (longest + 1, longest + 2, 2 * longest):
    monkeypatch.setattr(reading, "_SCAN_IDS", scan)
    assert sorted(stored(build_tokens(tmp_path / "a.npy", **how))) == sorted(ids)


def test_a_stream_without_ends_is_cut_where_a_scan_ends(
  tmp_path: pathlib.Path, build_tokens: Build, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(reading, "_SCAN_IDS", 50)
  whole = tokenizer.encode(" ".join(TEXTS))
  np.save(tmp_path / "a.npy", np.array(whole))
  documents = stored(build_tokens(tmp_path / "a.npy", heldout=0))
  assert [token for document in documents for token in document] == whole
  assert {len(document) for document in documents[:-1]} == {50}


def test_ids_that_are_none_or_reserved_are_rejected_with_their_place(
  tmp_path: pathlib.Path, ids: list[list[int]], build_tokens: Build, tokenizer: Tokenizer
) -> None:
  call, size = tokenizer.id("call"), tokenizer.vocab_size
  bad = [[*ids[0], size], [-1, *ids[1]], [*ids[2], call, 3]]
  other = [
    '{"input_ids": "text"}',
    '{"input_ids": [1.5]}',
    '{"input_ids": []}',
    '{"input_ids": [true]}',
    '{"x": 1}',
    "no",
    "[1]",
  ]
  lines = [json.dumps({"input_ids": row}) for row in (*ids, *bad)] + other
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  summary = build_tokens(tmp_path / "a.jsonl")
  assert sorted(stored(summary)) == sorted(ids) and summary.counts["rejected"] == 10
  reasons = [json.loads(line)["reason"] for line in (pathlib.Path(summary.output) / "rejects.jsonl").read_text().splitlines()]
  expected = [
    rf"id {size}, number {len(ids[0])}, is none of the tokenizer's, which are 0 to {size - 1}",
    r"id -1, number 0, is none",
    rf"id {call}, number {len(ids[2])}, is reserved \(<\|call\|>\); --allow-reserved",
    *[r"'input_ids' is no list of whole numbers"] * 2, "empty", "no list of whole numbers", "no field 'input_ids'", "not JSON",
    "no field",
  ]  # fmt: skip
  assert [bool(re.search(e, reason)) for e, reason in zip(expected, reasons, strict=True)] == [True] * 10
  allowed = build_tokens(tmp_path / "a.jsonl", allow_reserved=True)
  assert allowed.counts["rejected"] == 9 and bad[2] in stored(allowed)


def test_ids_of_another_tokenizer_or_type_are_refused(
  tmp_path: pathlib.Path, ids: list[list[int]], build_tokens: Build
) -> None:
  other = train(
    ["the quick brown dog jumps over documents " * 3 + str(n) for n in range(90)], tmp_path / "t.model", vocab_size=360
  )
  np.save(tmp_path / "other.npy", stream(other.encode_batch(TEXTS)))
  with pytest.raises(TokenizerMismatchError, match=r"\d\d% come back when what they spell is encoded again; expected 95%"):
    build_tokens(tmp_path / "other.npy", split_at=(END,))
  assert build_tokens(tmp_path / "other.npy", split_at=(END,), agreement=0).counts["rejected"] == 0
  stream(ids)[:2000].astype(np.uint16).tofile(tmp_path / "a.bin")
  with pytest.raises((TokenizerMismatchError, EmptySourceError)):
    build_tokens(tmp_path / "a.bin", split_at=(END,), dtype="uint32")


def test_what_is_taken_out_of_the_text_is_taken_out_of_the_ids(
  tmp_path: pathlib.Path, ids: list[list[int]], build_tokens: Build, tokenizer: Tokenizer
) -> None:
  secret = "aws_access_key_id = AKIA" + "Z7QF3XK2LMNP4RST"
  np.save(tmp_path / "a.npy", stream([*ids, tokenizer.encode(f"config\n{secret}\nend")]))
  summary = build_tokens(tmp_path / "a.npy", split_at=(END,))
  texts = [tokenizer.decode(document) for document in stored(summary)]
  assert summary.counts["encoded_again"] == 1
  assert not any("AKIAZ7" in text for text in texts) and any("secret removed" in text for text in texts)
  assert set(TEXTS) <= set(texts)


def test_a_header_of_llm_c_is_passed_over(tmp_path: pathlib.Path, ids: list[list[int]], build_tokens: Build) -> None:
  body = stream(ids, first=True).astype(np.uint16)
  header = np.zeros(256, np.int32)
  header[:3] = 20240520, 1, len(body)
  (tmp_path / "a.bin").write_bytes(header.tobytes() + body.tobytes())
  assert sorted(stored(build_tokens(tmp_path / "a.bin", split_at=(END,), dtype="uint16"))) == sorted(ids)


def test_files_that_are_not_what_they_claim_are_refused(tmp_path: pathlib.Path, build_tokens: Build) -> None:
  np.save(tmp_path / "floats.npy", np.zeros(9))
  np.save(tmp_path / "deep.npy", np.zeros((2, 2, 2), np.int32))
  np.save(tmp_path / "objects.npy", np.array([[1], [1, 2]], object), allow_pickle=True)
  (tmp_path / "cut.npy").write_bytes((tmp_path / "deep.npy").read_bytes()[:20])
  (tmp_path / "odd.bin").write_bytes(b"abc")
  (tmp_path / "empty.bin").write_bytes(b"")
  (tmp_path / "bad.parquet").write_bytes(b"no parquet")
  pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "x.parquet")
  (tmp_path / "x.jsonl").write_text('{"x": [1]}')
  for name, error, message, how in (
    ("floats.npy", DataError, "holds float64", {}),
    ("deep.npy", DataError, "shape", {}),
    ("objects.npy", UndecodableError, "save it again", {}),
    ("cut.npy", UndecodableError, "save it again", {}),
    ("odd.bin", DataError, "does not say of which type", {}),
    ("odd.bin", DataError, "3 bytes, which are no whole number of uint16", {"dtype": "uint16"}),
    ("empty.bin", DataError, "0 bytes", {"dtype": "uint16"}),
    ("bad.parquet", UndecodableError, "cannot be read as parquet", {}),
    ("x.parquet", DataError, "no field 'input_ids'; its fields are 'x'", {}),
    ("x.jsonl", DataError, "no field 'input_ids'; its fields are 'x'", {}),
    ("none.npy", DataError, "does not exist", {}),
    ("a.csv", DataError, "does not exist", {}),
  ):
    with pytest.raises(error, match=message):
      build_tokens(tmp_path / name, **how)


def test_an_unknown_type_and_no_input_are_refused(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
  with pytest.raises(ConfigError, match="dtype is 'float'; expected one of uint16"):
    TokenOptions(dtype="float")
  with pytest.raises(ConfigError, match=r"agreement is 1\.5"):
    TokenOptions(agreement=1.5)
  with pytest.raises(ConfigError, match="give files of ids"):
    build("tokens", tmp_path, tokenizer=tokenizer)


def test_a_stream_larger_than_memory_is_read_in_pieces(tmp_path: pathlib.Path, tokenizer: Tokenizer) -> None:
  # A hole in a file takes no room on the disk: 8 GB of it, of which the first documents are asked for.
  row = np.array([*tokenizer.encode(TEXTS[0]), END], np.uint16)
  with (tmp_path / "a.bin").open("wb") as file:
    file.write(row.tobytes() * 4000)
    file.truncate(8 << 30)
  tokenizer_path = tmp_path / "t.model"
  tokenizer_path.write_bytes(tokenizer._model)
  code = (
    "import itertools, pathlib, re, sys\n"
    "from maxagent.data.tokens import TokenOptions, token_parts\n"
    "from maxagent.tokenizer import Tokenizer\n"
    "options = TokenOptions(dtype='uint16', split_at=(5,))\n"
    "parts = token_parts([sys.argv[1]], tokenizer=Tokenizer.load(sys.argv[2]), options=options)\n"
    "print(sum(len(part.records) for part in itertools.islice(parts, 4000)))\n"
    # Not ru_maxrss, which begins with that of the process that started this one.
    "print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])"
  )
  command = [sys.executable, "-c", code, str(tmp_path / "a.bin"), str(tokenizer_path)]
  done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
  documents, kilobytes = map(int, done.stdout.split())
  assert documents == 4000 and kilobytes < 600_000


def test_what_a_foreign_tokenizer_has_no_token_for_is_counted(tmp_path: pathlib.Path) -> None:
  words = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "fox": 1, "dog": 2}, unk_token="<unk>"))
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  (tmp_path / "a.txt").write_text("fox cat dog\n\nwolf and fox")
  options = BuildOptions(heldout_per_mille=0)
  summary = build("web", tmp_path / "out", [tmp_path / "a.txt"], tokenizer=Tokenizer(words.to_str().encode()), options=options)
  assert summary.counts["unknown_tokens"] == 3
  assert stored(summary) == [[1, 0, 2, 0, 0, 1]]
