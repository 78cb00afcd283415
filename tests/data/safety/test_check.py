from __future__ import annotations

import pathlib

import numpy as np
import pytest

from maxagent.data.document import Document
from maxagent.data.safety import EvaluationSet, Safety, SafetyOptions, count_names
from maxagent.data.source_items import Reject, SourceDocument
from maxagent.data.sources import SourceTrace
from maxagent.errors import ConfigError
from maxagent.traces.schema import Flag, Segment, Trace

TEXT = "the quick brown fox jumps over the lazy dog and then it goes home to sleep for a long while"
KEY = "AKIA" + "IOSFODNN7EXAMPLE"


def trace(*texts: str, system: str = "", args: str = "{}") -> SourceTrace:
  head = [Segment(role="system", text=system)] if system else []
  segments = (*head, *(Segment(role="think", text=t) for t in texts), Segment(role="call", text="get", args=args))
  return SourceTrace(Trace(id="t", family="f", segments=segments), f"trace of {texts[0][:9]}", "maxagent")


@pytest.fixture
def sets(tmp_path: pathlib.Path) -> tuple[EvaluationSet, ...]:
  (tmp_path / "my-exam.txt").write_text(TEXT)
  return (EvaluationSet.parse(str(tmp_path / "my-exam.txt")),)


def checked(safety: Safety, text: str) -> tuple[object, dict[str, int]]:
  item, _, counts = safety.check(SourceDocument(text, "doc"))
  return item, dict(counts)


def test_everything_found_is_counted_and_every_loss_has_its_reason(sets: tuple[EvaluationSet, ...]) -> None:
  safety = Safety(SafetyOptions(evaluation_sets=sets))
  assert checked(safety, "nothing to see") == (SourceDocument("nothing to see", "doc"), {})
  item, counts = checked(safety, TEXT)
  assert isinstance(item, Reject) and item.reason.startswith("holds a piece of my-exam (8 n-grams): the quick brown")
  assert counts == {"contaminated": 1, "contaminated_my_exam": 1}
  item, counts = checked(safety, f"key {KEY}")
  assert item == SourceDocument("key [secret removed: aws_access_token]", "doc")
  assert counts == {"secrets": 1, "documents_with_secrets": 1, "secrets_aws_access_token": 1}


def test_traces_go_through_the_same(sets: tuple[EvaluationSet, ...]) -> None:
  safety = Safety(SafetyOptions(evaluation_sets=sets))
  assert isinstance(safety.check(trace("first", args=f'{{"q":"{TEXT}"}}')).item, Reject)
  first, second = (safety.check(trace(t)) for t in ("look up the number asked for", "Look up the number asked for!"))
  assert isinstance(first.item, SourceTrace) and first.signature == second.signature
  cleaned = safety.check(trace("now log in to the other system", args=f'{{"key":"{KEY}"}}')).item
  assert isinstance(cleaned, SourceTrace) and cleaned.trace.segments[-1].args == '{"key":"[secret removed: aws_access_token]"}'


def test_the_signature_of_a_trace_leaves_out_what_its_harness_repeats() -> None:
  safety = Safety(SafetyOptions(secrets=False))
  prompt = " ".join(f"rule{n}" for n in range(500))
  text = " ".join(f"a{n}" for n in range(20))
  assert safety.check(trace(text, system=prompt)).signature == safety.check(trace(text)).signature


def test_contaminated_documents_may_be_kept_and_counted(sets: tuple[EvaluationSet, ...]) -> None:
  safety = Safety(SafetyOptions(evaluation_sets=sets, contaminated="count"))
  item, counts = checked(safety, TEXT)
  assert item == SourceDocument(TEXT, "doc") and counts["contaminated"] == 1


def test_what_is_off_neither_acts_nor_counts() -> None:
  off = SafetyOptions(secrets=False, near_duplicates=None, repeats=None)
  safety = Safety(off)
  item = SourceDocument(f"{TEXT} {KEY}", "a")
  assert safety.check(item) == (item, b"", {}) and count_names(off) == ()
  zeros = np.zeros(40, np.uint8)
  document = Document(np.zeros(40, np.int32), zeros, zeros, zeros)
  assert safety.mute([document])[0] is document


def test_repeated_tokens_are_muted() -> None:
  safety = Safety(SafetyOptions(secrets=False))
  zeros = np.zeros(40, np.uint8)
  (muted,) = safety.mute([Document(np.array([1] + [5] * 38 + [2], np.int32), zeros, zeros, zeros)])
  assert muted.flags.tolist() == [0] + [Flag.MUTED] * 38 + [0]


@pytest.mark.parametrize(
  ("field", "value"),
  [("near_duplicates", 0), ("near_duplicates", 1.1), ("contaminated", "drop"), ("repeats", 1), ("repeated_tokens", 0)],
)
def test_options_that_make_no_sense_are_refused(field: str, value: object) -> None:
  with pytest.raises(ConfigError, match=f"{field} is {value!r}"):
    SafetyOptions(**{field: value})  # type: ignore[arg-type]
