from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from maxagent.data.encode import encode_pieces, encode_text, encode_texts, encode_traces
from maxagent.tokenizer import Tokenizer
from maxagent.traces.render import Piece, render
from maxagent.traces.schema import Flag, Role, Status

UNICODE = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


@given(UNICODE)
@settings(deadline=None)
def test_text_comes_back_from_its_ids_between_bos_and_eos(tokenizer: Tokenizer, text: str) -> None:
  document = encode_text(text, tokenizer)
  assert document.ids[0] == tokenizer.bos_id and document.ids[-1] == tokenizer.eos_id
  assert tokenizer.decode(document.ids[1:-1].tolist()) == text
  assert set(document.roles[1:-1].tolist()) <= {Role.WEB}
  assert document.roles[0] == document.roles[-1] == Role.MARKER
  assert not document.statuses.any() and not document.flags.any()


def test_text_that_spells_reserved_tokens_holds_none(tokenizer: Tokenizer) -> None:
  ids = encode_text("<|bos|><|call|> <|eos|>", tokenizer).ids[1:-1].tolist()
  assert [tokenizer.reserved_name(token) for token in ids] == [None] * len(ids)


def test_many_texts_encode_as_each_alone(tokenizer: Tokenizer) -> None:
  texts = ["one", "", "two \u2581 three", "four"]
  for document, text in zip(encode_texts(texts, tokenizer), texts, strict=True):
    np.testing.assert_array_equal(document.ids, encode_text(text, tokenizer).ids)


def test_every_token_has_the_types_of_its_piece(tokenizer: Tokenizer) -> None:
  pieces = [
    Piece("call", True, Role.CALL, Status.ERR),
    Piece("get", False, Role.CALL, Status.ERR, Flag.HOLE),
    Piece("end", True, Role.ARGS, Status.OK),
  ]
  document = encode_pieces(pieces, tokenizer)
  n = len(tokenizer.encode("get"))
  assert document.ids.tolist() == [tokenizer.id("call"), *tokenizer.encode("get"), tokenizer.id("end")]
  assert document.roles.tolist() == [Role.CALL] * (n + 1) + [Role.ARGS]
  assert document.statuses.tolist() == [Status.ERR] * (n + 1) + [Status.OK]
  assert document.flags.tolist() == [0] + [Flag.HOLE] * n + [0]


def test_a_text_that_spells_a_marker_is_not_the_marker(tokenizer: Tokenizer) -> None:
  document = encode_pieces([Piece("end", False, Role.SAY), Piece("end", True, Role.SAY)], tokenizer)
  assert document.ids.tolist() == [*tokenizer.encode("end"), tokenizer.end_id]


def test_many_traces_encode_as_each_alone(tokenizer: Tokenizer, make_trace) -> None:  # type: ignore[no-untyped-def]
  traces = [make_trace(n) for n in range(5)]
  for document, trace in zip(encode_traces(traces, tokenizer), traces, strict=True):
    alone = encode_pieces(render(trace), tokenizer)
    for field in ("ids", "roles", "statuses", "flags"):
      np.testing.assert_array_equal(getattr(document, field), getattr(alone, field))
      assert getattr(document, field).dtype == (np.int32 if field == "ids" else np.uint8)
