"""Rewriting of documents: what each format does, that it loses nothing, and that it is planned exactly."""

from __future__ import annotations

import collections
import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxagent.config.schema import Data, Formats, Objective, Source
from maxagent.data.document import Document, calls, head_tokens, segments
from maxagent.data.formats import PLAIN, SENTINELS, Recipe, choose_text, choose_trace, rewrite
from maxagent.data.formats.rewrite import holes
from maxagent.data.order import OrderedDocuments
from maxagent.data.pipeline import open_pipeline
from maxagent.data.rows import RowWriter
from maxagent.data.shards import ShardWriter, open_shards
from maxagent.errors import ConfigError
from maxagent.objectives.weights import token_weights, weight_table
from maxagent.sampling.turns import read_turn
from maxagent.tokenizer import Tokenizer
from maxagent.traces.schema import RESERVED, Flag, Role, Status

R = 1000  # the first reserved id of the documents made here
FORMATS = Formats()


def number(name: str) -> int:
  """`<name>` is a reserved token, anything else a word: one id for each."""
  return R + RESERVED.index(name) if name in RESERVED else 1 + sum(ord(c) << 3 * i for i, c in enumerate(name)) % 900


def made(text: str, failed: tuple[int, ...] = ()) -> Document:
  """A document of reserved names and words; calls whose number (from 0) is in `failed` have status err."""
  roles, statuses, role, call = [], [], Role.MARKER, -1
  for word in text.split():
    if word in ("goal", "call", "obs", "plan", "args", "answer"):
      role = Role[word.upper()]
      call += word == "call"
    roles.append(Role.MARKER if word in ("bos", "eos") else role)
    statuses.append(Status.ERR if role in (Role.CALL, Role.ARGS) and call in failed else Status.NA)
  ids = np.array([number(word) for word in text.split()], np.int32)
  return Document(ids, np.array(roles, np.uint8), np.array(statuses, np.uint8), np.zeros(len(ids), np.uint8))


def words(document: Document) -> list[str]:
  back = {number(word): word for word in "get put list k g v w x y 1 2".split()}
  return [RESERVED[i - R] if i >= R else back[i] for i in document.ids.tolist()]


def run(document: Document, recipe: Recipe, formats: Formats = FORMATS, other: Document | None = None) -> Document:
  return rewrite(document, recipe, formats, first_reserved=R, fetch=lambda record: other or document)


class Table:
  """Nine records with the same calls."""

  def __init__(self, calls: np.ndarray) -> None:
    self._calls = calls

  def __len__(self) -> int:
    return 9

  def calls(self, record: int) -> np.ndarray:
    return self._calls


EXAMPLE = made("bos goal g end call get args k end eos")
NAME_ONLY = dataclasses.replace(FORMATS, holes=(("tool_name", 1.0),))


def test_infill_puts_the_hole_last_after_prefix_and_suffix():
  psm = run(EXAMPLE, Recipe("infill", SENTINELS, (0.9, 0.0, 0.0)), NAME_ONLY)
  assert words(psm) == "bos fim_pre goal g end call fim_suf args k end fim_mid get eos".split()
  spm = run(EXAMPLE, Recipe("infill", SENTINELS, (0.1, 0.0, 0.0)), NAME_ONLY)
  assert words(spm) == "bos fim_pre fim_suf args k end fim_mid goal g end call get eos".split()
  for document in (psm, spm):
    assert [w for w, f in zip(words(document), document.flags, strict=True) if f & Flag.HOLE] == ["get"]
    assert [w for w, f in zip(words(document), document.flags, strict=True) if f & Flag.ADDED] == [
      w for w in words(document) if w.startswith("fim")
    ]


def test_fim_cuts_a_random_span_anywhere_but_around_the_frame():
  fim = run(EXAMPLE, Recipe("fim", SENTINELS, (0.9, 0.2, 0.4)))
  assert words(fim) == "bos fim_pre goal fim_suf get args k end fim_mid g end call eos".split()


def test_a_decision_shows_the_true_call_among_others_and_then_the_call_itself():
  other = made("bos call put args k end eos")
  recipe = Recipe("decision", 2 + 5 + 5, (0.9,), 0, ((1, 0),))
  decision = run(EXAMPLE, recipe, other=other)
  assert words(decision) == (
    "bos goal g end choose call put args k end call get args k end end call get args k end eos".split()
  )
  assert [w for w, f in zip(words(decision), decision.flags, strict=True) if f & Flag.DECISION] == "call get args k end".split()


TWO_CALLS = made("bos call get args end call put args end eos")


def test_a_fake_is_a_later_call_that_is_turned_back_from_before_the_true_one():
  fake = run(TWO_CALLS, Recipe("fake", 2 + 4, (), 0, ((0, 1),)))
  assert words(fake) == "bos call put args end back end call get args end call put args end eos".split()
  assert [w for w, f in zip(words(fake), fake.flags, strict=True) if f & Flag.ADDED] == "call put args end back end".split()
  assert [name for name, _, _ in segments(fake, R)] == ["call", "back", "call", "call"]
  # As targets only the turning back is learned of what was added, in every phase that learns to turn back.
  for phase in ("pretrain", "midtrain"):
    table = weight_table(Objective(phase=phase, overrides=(("marker", 0.0),)))
    weights = token_weights(*(jnp.asarray(x)[None] for x in (fake.roles, fake.statuses, fake.flags)), table)
    assert weights[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]


def test_a_fake_is_of_a_later_other_call_and_neither_of_them_failed():
  rows = [[1, 5, 7, 0], [6, 10, 8, 1], [11, 15, 7, 0], [16, 22, 9, 0]]
  found = collections.Counter()
  for key in range(400):
    formats = Formats(infill=0, fim=0, decision=0, fake=1)
    table = Table(np.array(rows, np.uint32))
    recipe = choose_trace(formats, key, 30, room=99, record=4, whole=True, pool=table)
    ((record, fake),) = recipe.distractors
    assert (recipe.name, record, recipe.added) == ("fake", 4, 2 + rows[fake][1] - rows[fake][0])
    found[recipe.call, fake] += 1
    for whole, room, calls_ in ((False, 99, rows), (True, 30 + 7, rows), (True, 99, rows[:3]), (True, 99, [])):
      pool = Table(np.array(calls_, np.uint32).reshape(-1, 4))
      assert choose_trace(formats, key, 30, room=room, record=4, whole=whole, pool=pool) is PLAIN
  assert set(found) == {(0, 3), (2, 3)} and min(found.values()) > 150


def test_weights_at_the_edges_of_spans_are_exact():
  writer = RowWriter(1, 16)
  document = run(EXAMPLE, Recipe("infill", SENTINELS, (0.9, 0.0, 0.0)), NAME_ONLY)
  writer.write(0, document, 0, len(document), 0)
  batch = writer.batch()
  weights = token_weights(*(jnp.asarray(x) for x in (batch.roles, batch.statuses, batch.flags)), weight_table(Objective()))
  # Targets: PRE goal g end call SUF args k end MID get eos, then nothing.
  expected = [0, 0.1, 0.1, 0.1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
  np.testing.assert_allclose(weights[0], expected, rtol=1e-6)


def test_what_failed_is_no_hole_and_no_right_answer():
  document = made("bos goal g end call get args k end obs err x end call list args end obs y end call put args v end eos", (0,))
  found = {kind: [words(document[a:b]) for a, b in spans] for kind, spans in holes(document, R).items()}
  assert found == {
    "tool_name": [["list"], ["put"]],
    "arguments": [["v"]],
    "call": ["call list args end".split(), "call put args v end".split()],
    "plan": [],
    "call_obs_call": ["call list args end obs y end call put args v end".split()],
  }
  table = calls(document, R)
  assert table[:, 3].tolist() == [1, 0, 0]
  chosen = {
    choose_trace(
      Formats(infill=0, fim=0, decision=1, distractors=2), key, len(document), room=99, record=0, whole=True, pool=Table(table)
    ).call
    for key in range(40)
  }
  assert chosen == {1, 2}


def test_a_document_without_a_hole_is_cut_at_random():
  text = made("bos g k v w x y 1 2 eos")
  assert sorted(run(text, Recipe("infill", SENTINELS, (0.9, 0.3, 0.6))).ids) == sorted(
    [*text.ids, *(number(name) for name in ("fim_pre", "fim_suf", "fim_mid"))]
  )


@pytest.fixture(scope="module")
def source(small_data: pathlib.Path) -> Source:
  return Source(name="trace", path=str(small_data / "trace"))


@pytest.fixture(scope="module")
def tokenizer(small_data: pathlib.Path) -> Tokenizer:
  return Tokenizer.load(small_data / "tokenizer.model")


def opened(source: Source, **fields: object) -> OrderedDocuments:
  data = Data(sources=(source,), **({"sequence_tokens": 512, "packing_window": 8} | fields))  # type: ignore[arg-type]
  return OrderedDocuments(source, open_shards(f"{source.path}/train"), data)


def content_of(document: Document) -> list[tuple[int, int, int]]:
  kept = document.flags & Flag.ADDED == 0
  return sorted(zip(document.ids[kept], document.roles[kept], document.statuses[kept], strict=True))


@given(st.sampled_from(["infill", "fim", "decision", "fake"]), st.integers(0, 7), st.integers(0, 60))
@settings(deadline=None, max_examples=60)
def test_rewriting_keeps_every_token_of_the_document_and_adds_what_was_planned(
  source: Source, what: str, stream: int, window: int
):
  formats = dataclasses.replace(Formats(infill=0, fim=0, decision=0), **{what: 1.0})
  documents = opened(source, formats=formats)
  row = documents.take(stream, (window % 4 * 8, 0, 0), 512, 0)
  for piece in row.pieces:
    original = documents._document(stream, piece.document, documents._record(stream, piece.document)[0])
    rewritten, start, stop = documents.read(stream, piece)
    assert (stop - start, stop - start - piece.recipe.added) == (piece.tokens, len(original))
    assert content_of(rewritten) == content_of(original)
    assert int(np.sum(rewritten.flags & Flag.ADDED > 0)) == piece.recipe.added
    if what in ("decision", "fake"):
      kept = rewritten.flags & Flag.ADDED == 0
      np.testing.assert_array_equal(rewritten.ids[kept], original.ids)  # an augmentation moves nothing
    if what == "fake":
      assert piece.recipe.name == "fake"
      assert turned_back(rewritten, documents) in [c.tolist() for c in later_calls(original, piece.recipe, documents)]
    if what == "decision":
      assert piece.recipe is PLAIN or len({tuple(c) for c in candidates(rewritten, documents)}) == 4
  assert row.tokens <= 512


def candidates(document: Document, documents: OrderedDocuments) -> list[list[int]]:
  first = documents.shards.index.first_reserved
  start = int(np.flatnonzero(document.ids == first + RESERVED.index("choose"))[0]) + 1
  shown = document[start:]
  return [shown.ids[a:b].tolist() for name, a, b in segments(shown, first) if name == "call" and shown.flags[a] & Flag.ADDED]


def turned_back(document: Document, documents: OrderedDocuments) -> list[int]:
  """The call that stands before the first added `<|back|> <|end|>`, which the true call follows."""
  first = documents.shards.index.first_reserved
  parts = [(name, slice(a, b)) for name, a, b in segments(document, first)]
  n = next(n for n, (name, span) in enumerate(parts) if name == "back" and document.flags[span.start] & Flag.ADDED)
  (before, fake), (_, back), (after, true) = parts[n - 1 : n + 2]
  assert before == after == "call" and not (document.flags[true] & Flag.ADDED).any()
  assert (document.flags[fake] == Flag.ADDED).all()
  assert document.flags[back].tolist() == [Flag.ADDED | Flag.DECISION] * 2
  return document.ids[fake].tolist()


def later_calls(document: Document, recipe: Recipe, documents: OrderedDocuments) -> list[np.ndarray]:
  table = calls(document, documents.shards.index.first_reserved)
  return [document.ids[a:b] for a, b, _, failed in table[recipe.call + 1 :].tolist() if not failed]


def test_what_a_fake_teaches_is_a_turn_that_can_be_said(tokenizer: Tokenizer, source: Source):
  documents = opened(source, formats=Formats(infill=0, fim=0, decision=0, fake=1.0))
  (piece, *_) = documents.take(0, (0, 0, 0), 512, 0).pieces
  rewritten, _, _ = documents.read(0, piece)
  back = int(np.flatnonzero(rewritten.flags & Flag.DECISION)[0])
  end = int(np.flatnonzero(rewritten.ids[back + 2 :] == tokenizer.end_id)[0]) + back + 3
  turn = read_turn(rewritten.ids[back:end].tolist(), tokenizer)
  assert [s.role for s in turn.segments] == ["back", "call"] and all(s.err_kind is None for s in turn.segments)
  assert turn.action == f"call {turn.segments[1].text} {turn.segments[1].args}"


def test_shares_of_formats_and_holes_are_those_asked_for():
  table = np.array([[5, 15, n, 0] for n in range(6)], np.uint32)
  names = collections.Counter(
    choose_trace(FORMATS, key * 7919, 200, room=512, record=0, whole=True, pool=Table(table)).name for key in range(20_000)
  )
  for name, share in (("plain", 0.5), ("infill", 0.3), ("fim", 0.1), ("decision", 0.1)):
    assert names[name] / 20_000 == pytest.approx(share, abs=0.012)
  texts = collections.Counter(choose_text(FORMATS, key * 7919, 200).name for key in range(20_000))
  assert texts["fim"] / 20_000 == pytest.approx(0.1, abs=0.01)
  assert choose_text(FORMATS, 1, 10) is PLAIN  # too short to cut


def test_kinds_of_holes_come_in_their_shares_and_leave_them_to_the_others_where_absent():
  document = made("bos plan g end call get args k end obs y end call put args v end answer 1 end eos")
  rng = np.random.default_rng(0)
  counts: collections.Counter[str] = collections.Counter()
  for _ in range(3000):
    hidden = run(document, Recipe("infill", SENTINELS, tuple(rng.random(3))))
    part = [w for w, f in zip(words(hidden), hidden.flags, strict=True) if f & Flag.HOLE]
    counts[" ".join(part)] += 1
  assert counts["get"] + counts["put"] == pytest.approx(600, abs=80)
  assert counts["k"] + counts["v"] == pytest.approx(600, abs=80)
  assert counts["call get args k end"] + counts["call put args v end"] == pytest.approx(900, abs=90)
  assert counts["plan g end"] == pytest.approx(600, abs=80)
  assert counts["call get args k end obs y end call put args v end"] == pytest.approx(300, abs=60)


def test_a_record_is_rewritten_alike_every_time_and_anew_in_another_pass(source: Source):
  one, other = opened(source), opened(source)
  assert one.take(3, (8, 2, 0), 512, 0) == other.take(3, (8, 2, 0), 512, 0)
  recipes = [[documents_key(one, epoch, record) for record in range(200)] for epoch in (0, 1)]
  assert recipes[0] != recipes[1]


def documents_key(documents: OrderedDocuments, epoch: int, record: int) -> str:
  return documents._choose(record, 0, epoch, int(documents.shards.lengths[record]), 512, whole=True).name


def test_a_long_trace_goes_on_in_the_next_rows_with_its_head_told_again_at_weight_0(tmp_path: pathlib.Path):
  body = " ".join(f"call get args {w} end obs x end" for w in "k v w y g".split() * 4)
  document = made(f"bos goal g k v end {body} answer 1 end eos")
  for split in ("train", "heldout"):
    writer = ShardWriter(tmp_path / split, kind="trace", tokenizer_digest="d", vocab_size=2000, first_reserved=R, streams=1)
    writer.add(document, 1)
    writer.close({})
  source = Source(name="t", path=str(tmp_path))
  assert head_tokens(document, R) == 6
  for formats in (Formats(infill=0, fim=0, decision=0), Formats(infill=1, fim=0, decision=0)):
    documents = opened(source, sequence_tokens=48, packing_window=1, formats=formats)
    position, seen = (0, 0, 0), []
    while position[0] == 0:
      row = documents.take(0, position, 48, 0)
      (piece,) = row.pieces
      part, start, stop = documents.read(0, piece)
      assert stop - start == piece.tokens <= 48
      told = part[: piece.head]
      if piece.start:
        assert words(told) == "bos goal g k v end".split()
        assert all(flag & Flag.MUTED and flag & Flag.ADDED and flag & Flag.CONTINUED for flag in told.flags.tolist())
      span = part[max(start, piece.head) : stop]
      seen += span.ids[span.flags & Flag.ADDED == 0].tolist()
      position = row.position
    assert sorted(seen) == sorted(document.ids.tolist())


def test_with_all_formats_on_rows_are_full_shares_are_kept_and_any_process_resumes(
  small_data: pathlib.Path, tokenizer: Tokenizer
):
  sources = tuple(Source(name=name, path=str(small_data / name)) for name in ("trace", "web"))
  data = Data(tokenizer="", sources=sources, sequence_tokens=512, global_batch=8, packing_window=16)
  whole, half = (open_pipeline(data, tokenizer.digest, rows=rows) for rows in (range(8), [5, 2]))
  flags: collections.Counter[str] = collections.Counter()
  own = np.zeros(2, int)
  for _ in range(60):
    batch, part = next(whole), next(half)
    for name in ("tokens", "targets", "roles", "flags", "segments", "positions"):
      np.testing.assert_array_equal(getattr(part, name), getattr(batch, name)[[5, 2]])
    assert (batch.segments > 0).all()
    for flag in Flag:
      flags[str(flag.name)] += int(np.sum(batch.flags & flag > 0))
    own += np.bincount(batch.sources[batch.segments > 0], minlength=2)
  report = whole.report()
  assert report["fill"] == 1 and 0 < report["added"] < 0.1
  assert sum(report["tokens"].values()) == round((1 - report["added"]) * 60 * 8 * 512)
  assert abs(report["tokens"]["trace"] - sum(report["tokens"].values()) / 2) <= 2 * 512 + 0.001 * sum(report["tokens"].values())
  assert all(flags[name] > 0 for name in ("HOLE", "ADDED", "DECISION"))
  assert whole.get_state() == half.get_state()
  resumed = open_pipeline(data, tokenizer.digest, rows=range(8))
  resumed.set_state(half.get_state())
  np.testing.assert_array_equal(next(resumed).tokens, next(whole).tokens)
  for pipeline in (whole, half, resumed):
    pipeline.close()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"infill": 0.9, "fim": 0.2}, "at most 1"),
    ({"fake": 0.6}, "at most 1"),
    ({"fake": -0.1}, "0 to 1"),
    ({"fim": -0.1}, "0 to 1"),
    ({"holes": (("tool", 1.0),)}, "tool_name"),
    ({"distractors": 0}, "above 0"),
  ],
)
def test_shares_that_cannot_be_are_refused(fields: dict[str, object], message: str):
  with pytest.raises(ConfigError, match=message):
    Formats(**fields)  # type: ignore[arg-type]
