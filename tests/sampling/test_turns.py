from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxagent.sampling.turns import prompt_ids, read_turn, segment_ids
from maxagent.tokenizer import Tokenizer
from maxagent.traces.schema import MODEL_ROLES, Segment, Trace


def _ids(tokenizer: Tokenizer, *parts: str) -> list[int]:
  """`<name>` is a reserved token, anything else text."""
  return [t for part in parts for t in ([tokenizer.id(part[1:-1])] if part.startswith("<") else tokenizer.encode(part))]


def test_a_turn_reads_as_the_segments_that_rendered_it(tokenizer: Tokenizer):
  segments = (
    Segment(role="back", text=""),
    Segment(role="reflect", text='use "tin", not "pan"'),
    Segment(role="call", text="get_box", args='{"key":"tin"}'),
  )
  ids = [token for segment in segments for token in segment_ids(segment, tokenizer)]
  written = read_turn(ids, tokenizer)
  assert written.segments == segments
  assert written.action == 'call get_box {"key":"tin"}'
  assert ids[written.last_start] == tokenizer.id("call") and not written.open


def test_an_answer_is_an_action_and_a_plan_is_none(tokenizer: Tokenizer):
  assert read_turn(_ids(tokenizer, "<answer>", "tin", "<end>"), tokenizer).action == "answer tin"
  assert read_turn(_ids(tokenizer, "<plan>", "open", "<end>"), tokenizer).action is None


def test_text_outside_a_segment_is_kept_and_marked_malformed(tokenizer: Tokenizer):
  written = read_turn(_ids(tokenizer, "stray", "<end>", "<call>", "get", "<end>"), tokenizer)
  stray, call = written.segments
  assert (stray.role, stray.text, stray.status, stray.err_kind) == ("say", "stray", "err", "malformed")
  assert (call.role, call.text, call.args, call.err_kind) == ("call", "get", "", "malformed")
  assert written.action == "call get "


def test_a_cut_turn_is_open_and_has_no_action(tokenizer: Tokenizer):
  written = read_turn(_ids(tokenizer, "<plan>", "open", "<end>", "<call>", "get", "<args>", '{"key'), tokenizer)
  assert written.open and written.action is None
  assert written.segments[-1].err_kind == "malformed" and written.segments[-1].args == '{"key'
  assert written.last_start == len(_ids(tokenizer, "<plan>", "open", "<end>"))


def test_a_marker_inside_a_segment_is_spelled_out_and_a_second_role_begins_a_segment(tokenizer: Tokenizer):
  written = read_turn(_ids(tokenizer, "<answer>", "a", "<args>", "b", "<end>"), tokenizer)
  assert written.segments[0].text == "a<|args|>b" and written.segments[0].err_kind == "malformed"
  nested = read_turn(_ids(tokenizer, "<call>", "get", "<answer>", "b", "<end>"), tokenizer)
  assert [segment.role for segment in nested.segments] == ["call", "answer"] and nested.action == "answer b"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_a_model_writes_can_be_stored_and_rendered(tokenizer: Tokenizer, data: st.DataObject):
  ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=30))
  written = read_turn(ids, tokenizer)
  assert {segment.role for segment in written.segments} <= MODEL_ROLES
  trace = Trace(id="t", family="kv", segments=written.segments)
  assert Trace.from_json(trace.to_json()) == trace
  for segment in written.segments:
    # A reserved token that was sampled where it does not belong must not come back as a marker.
    names = [name for token in segment_ids(segment, tokenizer) if (name := tokenizer.reserved_name(token))]
    assert names == ([segment.role, "args", "end"] if segment.role == "call" else [segment.role, "end"])


def test_a_prompt_begins_with_bos(tokenizer: Tokenizer):
  ids = prompt_ids([Segment(role="goal", text="g")], tokenizer)
  assert ids[0] == tokenizer.bos_id and ids[1] == tokenizer.id("goal") and ids[-1] == tokenizer.end_id


@pytest.mark.parametrize("text", ["call", '{"a":"b"}', "two  spaces\n"])
def test_a_segments_text_survives_ids(tokenizer: Tokenizer, text: str):
  written = read_turn(segment_ids(Segment(role="think", text=text), tokenizer), tokenizer)
  assert written.segments[0].text == text
