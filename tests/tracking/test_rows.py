from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxagent.tracking.rows import Document, Inspection, Tally, Token, candidates, figures, joints, parts

MakeDocument = Callable[..., Document]


def _words(document: Document) -> list[str]:
  return [" ".join(token.reserved or token.piece for token in part.tokens) for part in parts(document)]


def test_a_turn_begins_at_its_marker_and_where_a_hole_is_filled(told: dict[str, str], make_document: MakeDocument) -> None:
  assert _words(make_document(told["prefix first"])) == [
    "bos fim_pre goal g end", "call", "fim_suf args k end", "fim_mid get", "eos",
  ]  # fmt: skip
  assert _words(make_document(told["suffix first"])) == [
    "bos fim_pre fim_suf args k end", "fim_mid goal g end", "call", "get", "eos",
  ]  # fmt: skip


def test_a_turn_is_named_by_its_role_and_a_candidate_by_what_it_is(told: dict[str, str], make_document: MakeDocument) -> None:
  labels = [part.label for part in parts(make_document(told["decision"]))]
  assert labels == ["goal", "choose", "candidate", "candidate", "choose", "call"]
  labels = [part.label for part in parts(make_document(told["recovery"]))]
  assert labels == ["tools", "call", "obs", "back", "reflect", "answer", "outcome"]


@pytest.mark.parametrize(("order", "place", "fill"), [("prefix first", 6, range(11, 12)), ("suffix first", 2, range(11, 12))])
def test_a_hole_is_joined_with_its_fill_in_either_order(
  order: str, place: int, fill: range, told: dict[str, str], make_document: MakeDocument
) -> None:
  document = make_document(told[order])
  (joint,) = joints(document.tokens)
  assert (joint.kind, joint.origin, joint.target) == ("hole", range(place, place + 1), fill)
  assert document.notes == [f"hole, {order}"]


def test_the_true_candidate_is_joined_with_the_call_that_was_made(told: dict[str, str], make_document: MakeDocument) -> None:
  tokens = make_document(told["decision"]).tokens
  assert [tokens[span.start + 1].piece for span in candidates(tokens)] == ["put", "get"]
  (joint,) = joints(tokens)
  assert joint.kind == "decision"
  assert [tokens[i].piece for i in joint.origin] == [tokens[i].piece for i in joint.target]
  assert tokens[joint.origin.start + 1].piece == "get" and "added" not in tokens[joint.target.start].flags


def test_a_document_told_from_left_to_right_joins_nothing(told: dict[str, str], make_document: MakeDocument) -> None:
  document = make_document(told["recovery"])
  assert joints(document.tokens) == [] and candidates(document.tokens) == [] and document.notes == []


def test_a_call_that_failed_and_what_the_environment_said_are_failed_turns(
  told: dict[str, str], make_document: MakeDocument
) -> None:
  assert [part.label for part in parts(make_document(told["recovery"])) if part.failed] == ["call", "obs"]


def test_a_turn_tells_its_weights_and_its_flags(told: dict[str, str], make_document: MakeDocument) -> None:
  turns = {part.label: part for part in parts(make_document(told["recovery"]))}
  assert (turns["tools"].weight, turns["call"].weight, turns["reflect"].weight) == ("0.1", "1", "0–1")
  assert turns["reflect"].marks == ["muted 1"] and turns["call"].marks == []
  offered = [part for part in parts(make_document(told["decision"])) if part.label == "candidate"]
  assert [part.marks for part in offered] == [["added"], ["added"]]


def test_a_piece_says_that_it_goes_on_from_a_row_and_in_a_row(make_document: MakeDocument) -> None:
  middle = make_document("a b/web+continued c/web+continued")
  assert middle.notes == ["goes on from an earlier row"]
  last = Token(id=1, piece="d", role="web", weight=1.0, beyond=True)
  assert Document(source="web", segment=1, tokens=(*make_document("a b/web").tokens, last)).notes == ["goes on in another row"]
  assert Document(source="web", segment=1, tokens=(Token(id=1, piece="d", position=7),)).continued


def test_a_fake_is_told_from_a_mistake_that_was_executed(told: dict[str, str], make_document: MakeDocument) -> None:
  faked = make_document(
    "<bos> <call>/call+added put/call+added <end>/call+added <back>/back+added+decision <end>/back+added+decision "
    "<call>/call get/call <end>/call"
  )
  assert faked.notes == ["fake"] and joints(faked.tokens) == [] and make_document(told["recovery"]).notes == []
  assert [(part.label, part.marks) for part in parts(faked)] == [("call", ["added"]), ("back", ["added"]), ("call", [])]


def test_a_document_says_how_much_of_it_is_supervised(make_document: MakeDocument) -> None:
  assert make_document("<bos> a/web b/web*0 c/web d/web", segment=3).summary == "segment 3 · 5 tokens · 75% supervised"
  assert make_document("<bos>").summary == "segment 1 · 1 tokens"


@given(
  st.lists(st.sampled_from("bos end call args obs choose fim_pre fim_suf fim_mid ok eos a b".split()), min_size=1), st.data()
)
def test_every_token_stands_in_one_turn_in_order_whatever_the_grammar(words: list[str], data: st.DataObject) -> None:
  flags = data.draw(
    st.lists(st.sampled_from([(), ("hole",), ("decision",), ("added",)]), min_size=len(words), max_size=len(words))
  )
  named = [None if word in "ab" else word for word in words]
  tokens = tuple(
    Token(id=i, piece=word, reserved=name, role="call", flags=flag)
    for i, (word, name, flag) in enumerate(zip(words, named, flags, strict=True))
  )
  made = parts(Document(source="trace", segment=1, tokens=tokens))
  assert [token for part in made for token in part.tokens] == list(tokens)
  assert [(part.start, part.stop) for part in made] == [(part.tokens[0].id, part.tokens[-1].id + 1) for part in made]
  assert all(0 <= joint.origin.start < len(tokens) and 0 <= joint.target.start < len(tokens) for joint in joints(tokens))


def test_figures_are_sums_by_source_or_role_the_largest_first(make_inspection: Callable[..., Inspection]) -> None:
  tallies = make_inspection().tallies
  trace, web = figures(tallies, "source")
  assert (trace.name, trace.targets, trace.share, trace.supervised, trace.weight) == ("trace", "40", "83.3%", "75.0%", "0.525")
  assert (web.name, web.weight) == ("web", "1")
  assert [line.name for line in figures(tallies, "role")] == ["call", "tools", "web"]


def test_a_figure_that_was_not_asked_is_a_dash() -> None:
  (line,) = figures([Tally(source="trace", role="obs", targets=1200)], "role")
  assert (line.targets, line.supervised, line.weight) == ("1,200", "–", "–")
