"""The grammar of rendered traces, checked by hand-worked cases and by a parser of its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxagent.errors import TraceError
from maxagent.traces.render import Piece, render, render_segment
from maxagent.traces.schema import RESERVED, RESERVED_SLOTS, SEGMENT_ROLES, Flag, Role, Segment, Status, Trace

_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
  role = draw(st.sampled_from(SEGMENT_ROLES))
  args = draw(_TEXT) if role == "call" else None
  return Segment(role=role, text=draw(_TEXT), args=args, status=draw(st.sampled_from(("ok", "err", "na"))))


@st.composite
def traces(draw: st.DrawFn) -> Trace:
  parts = tuple(draw(st.lists(segments(), min_size=1, max_size=6)))
  return Trace(id="t", family="f", segments=parts, outcome=draw(st.sampled_from(("ok", "fail", "unknown"))))


def spelled(pieces: list[Piece]) -> str:
  return "".join(f"<|{piece.text}|>" if piece.marker else piece.text for piece in pieces)


def test_the_designs_example_renders_as_written() -> None:
  trace = Trace(
    id="t",
    family="kv",
    outcome="ok",
    segments=(
      Segment(role="tools", text="{schemas}"),
      Segment(role="goal", text="g"),
      Segment(role="call", text="get", args='{"k":"a"}', status="err"),
      Segment(role="obs", text="no key a", status="err"),
      Segment(role="back", text=""),
      Segment(role="reflect", text="list keys first"),
      Segment(role="call", text="list", args="{}", status="ok"),
      Segment(role="obs", text="b,c", status="ok"),
      Segment(role="answer", text="b"),
    ),
  )
  assert spelled(render(trace)) == (
    "<|bos|><|tools|>{schemas}<|end|><|goal|>g<|end|>"
    '<|call|>get<|args|>{"k":"a"}<|end|><|obs|><|err|>no key a<|end|>'
    "<|back|><|end|><|reflect|>list keys first<|end|>"
    "<|call|>list<|args|>{}<|end|><|obs|>b,c<|end|><|answer|>b<|end|><|ok|><|eos|>"
  )


def test_a_call_turns_from_role_call_to_role_args_at_its_args_marker() -> None:
  pieces = render_segment(Segment(role="call", text="get", args="{}", status="ok"))
  assert [(piece.text, piece.marker, piece.role) for piece in pieces] == [
    ("call", True, Role.CALL),
    ("get", False, Role.CALL),
    ("args", True, Role.ARGS),
    ("{}", False, Role.ARGS),
    ("end", True, Role.ARGS),
  ]
  assert {piece.status for piece in pieces} == {Status.OK}


def test_only_a_failed_observation_carries_the_err_marker() -> None:
  assert spelled(render_segment(Segment(role="obs", text="x", status="err"))) == "<|obs|><|err|>x<|end|>"
  assert spelled(render_segment(Segment(role="obs", text="x", status="ok"))) == "<|obs|>x<|end|>"
  assert spelled(render_segment(Segment(role="answer", text="x", status="err"))) == "<|answer|>x<|end|>"


@pytest.mark.parametrize(
  ("outcome", "end"), [("ok", "<|ok|><|eos|>"), ("fail", "<|fail|><|eos|>"), ("unknown", "<|end|><|eos|>")]
)
def test_an_outcome_is_said_at_the_end_where_it_is_known(outcome: str, end: str) -> None:
  trace = Trace(id="t", family="f", segments=(Segment(role="goal", text="g"),), outcome=outcome)
  assert spelled(render(trace)).endswith(end)


@given(traces())
def test_frames_have_role_marker_and_everything_else_the_role_and_status_of_its_segment(trace: Trace) -> None:
  pieces = render(trace)
  frames = [piece for piece in pieces if piece.role == Role.MARKER]
  known = [trace.outcome] if trace.outcome != "unknown" else []
  assert [piece.text for piece in frames] == ["bos", *known, "eos"]
  assert all(piece.marker and piece.status == Status.NA for piece in frames)
  expected = [piece for segment in trace.segments for piece in render_segment(segment)]
  assert pieces[1 : len(pieces) - len(known) - 1] == expected


@given(segments())
def test_a_segment_opens_with_its_role_closes_with_end_and_holds_its_text_once(segment: Segment) -> None:
  pieces = render_segment(segment)
  assert (pieces[0].text, pieces[0].marker) == (segment.role, True)
  assert (pieces[-1].text, pieces[-1].marker) == ("end", True)
  assert [piece.text for piece in pieces if not piece.marker] == [text for text in (segment.text, segment.args) if text]
  assert all(piece.text in RESERVED for piece in pieces if piece.marker)
  assert all(piece.status == Status[segment.status.upper()] and piece.flags == Flag(0) for piece in pieces)


def test_every_segment_role_is_a_role_and_a_reserved_name() -> None:
  for role in SEGMENT_ROLES:
    assert role in RESERVED
    assert Role[role.upper()].name.lower() == role


def test_the_numbers_of_the_shard_format_have_not_moved() -> None:
  names = "web system tools goal user plan think call args obs back reflect say answer marker pad"
  assert [(role.name.lower(), role.value) for role in Role] == [(name, n) for n, name in enumerate(names.split())]
  assert [(status.name, status.value) for status in Status] == [("NA", 0), ("OK", 1), ("ERR", 2)]
  assert [flag.value for flag in Flag] == [1, 2, 4, 8, 16]
  assert len(RESERVED) == len(set(RESERVED)) == RESERVED_SLOTS == 64
  assert RESERVED[:4] == ("bos", "eos", "pad", "end")


@given(traces())
def test_a_stored_trace_comes_back_equal(trace: Trace) -> None:
  assert Trace.from_json(trace.to_json()) == trace
  assert "\n" not in trace.to_json()


def test_a_stored_trace_keeps_tools_seeds_and_repairs() -> None:
  fixed = Segment(role="call", text="a", args="{}", step=3, call_id="c3", status="ok", fixes_step=2, confidence=0.5)
  failed = Segment(role="obs", text="no", step=2, call_id="c2", status="err", err_kind="wrong_tool")
  trace = Trace(id="é", family="kv", env_seed=7, tools=({"name": "a"},), goal="g", policy="oracle", segments=(failed, fixed))
  assert Trace.from_json(trace.to_json().encode()) == trace


@pytest.mark.parametrize(
  ("record", "named"),
  [
    ("{", "not JSON"),
    ("[]", "list"),
    ("{}", "segments"),
    ('{"id":"t","family":"f","segments":[]}', "no segments"),
    ('{"id":"t","family":"f","segments":[{"role":"goal"}]}', "text"),
    ('{"id":"t","family":"f","segments":[{"role":"gaol","text":""}]}', "gaol"),
    ('{"id":"t","family":"f","segments":[{"role":"goal","text":"","colour":1}]}', "colour"),
    ('{"id":"t","family":"f","segments":[{"role":"goal","text":"","status":"bad"}]}', "bad"),
    ('{"id":"t","family":"f","segments":[{"role":"goal","text":3}]}', "int"),
    ('{"id":"t","family":"f","segments":[{"role":"call","text":"a"}]}', "args"),
    ('{"id":"t","family":"f","segments":[{"role":"call","text":"a","args":{}}]}', "dict"),
    ('{"id":"t","family":"f","segments":[{"role":"goal","text":"","args":"{}"}]}', "args"),
    ('{"id":"t","family":"f","outcome":"won","segments":[{"role":"goal","text":""}]}', "won"),
    ('{"id":"t","family":"f","mood":"x","segments":[{"role":"goal","text":""}]}', "mood"),
    (b"\xff\xfe{", "not JSON"),
  ],
)
def test_a_record_that_breaks_the_schema_is_refused_and_what_is_wrong_is_named(record: str, named: str) -> None:
  with pytest.raises(TraceError, match=named):
    Trace.from_json(record)
