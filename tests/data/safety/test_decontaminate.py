from __future__ import annotations

import gzip
import json
import pathlib
import random
from collections.abc import Callable

import pytest

from maxagent.data.safety.decontaminate import EvaluationSet, EvaluationSets, Overlap
from maxagent.data.safety.words import words
from maxagent.errors import ConfigError

LONG = "How many of the 16 eggs that Janet's ducks lay every day does she sell at the farmers' market?"  # 19 words
SHORT = "What is the capital of the Roman Empire?"  # 8 words
TINY = "What is two plus two?"
Make = Callable[..., EvaluationSets]


@pytest.fixture
def make_sets(tmp_path: pathlib.Path) -> Make:
  def make(text: str | bytes, name: str = "exam.jsonl") -> EvaluationSets:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return EvaluationSets([EvaluationSet.parse(str(path))])

  return make


def lines(*questions: str) -> str:
  return "".join(json.dumps({"id": "q", "inner": [{"question": q}], "n": 3}) + "\n" for q in questions)


def overlap(sets: EvaluationSets, text: str) -> Overlap | None:
  return sets.overlap(words(text))


def test_thirteen_words_in_a_row_are_found_whatever_their_case_and_punctuation(make_sets: Make) -> None:
  sets = make_sets(lines(LONG))
  piece = " ".join(LONG.upper().replace("'", "").split()[2:15])
  assert overlap(sets, f"Seen on the web: {piece}!!") == Overlap("exam", piece.lower(), 1)
  assert overlap(sets, " ".join(LONG.split()[:12]) + " something else at the farmers market") is None


def test_an_item_of_eight_to_twelve_words_is_matched_whole(make_sets: Make) -> None:
  sets = make_sets(lines(SHORT, TINY))
  assert (sets.items, sets.ignored) == (1, 3)  # the tiny one, and the ids
  assert overlap(sets, f"Tell me: {SHORT} Rome.") is not None
  assert overlap(sets, "What is the capital of the Roman republic?") is None
  assert overlap(sets, TINY) is None


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("exam.json", json.dumps([{"q": LONG}])),
    ("exam.txt", f"{TINY}\n{LONG}\n"),
    ("exam.jsonl.gz", gzip.compress(lines(LONG).encode())),
  ],
)
def test_json_text_and_compressed_files_are_sets_too(make_sets: Make, name: str, text: str | bytes) -> None:
  found = overlap(make_sets(text, name), f"a {LONG} b")
  assert found is not None and found.evaluation_set == "exam" and found.ngrams == 7


def test_each_planted_question_is_found_and_nothing_else(make_sets: Make) -> None:
  chance = random.Random(0)
  questions = [" ".join(f"w{chance.randrange(500)}" for _ in range(chance.randrange(8, 40))) for _ in range(300)]
  sets = make_sets(lines(*questions))
  clean = [" ".join(f"w{chance.randrange(500)}" for _ in range(400)) for _ in range(300)]
  assert not any(overlap(sets, text) for text in clean)
  assert all(overlap(sets, f"{text} {question} {text}") for text, question in zip(clean, questions, strict=True))


def test_the_set_that_has_the_words_is_named(tmp_path: pathlib.Path) -> None:
  for name, text in (("a", LONG), ("b", SHORT)):
    (tmp_path / f"{name}.txt").write_text(text)
  sets = EvaluationSets([EvaluationSet.parse(f"first={tmp_path}/a.txt"), EvaluationSet.parse(f"{tmp_path}/b.txt")])
  assert [o and o.evaluation_set for o in (overlap(sets, LONG), overlap(sets, SHORT))] == ["first", "b"]


def test_questions_of_gsm8k_are_found_and_this_machines_documentation_is_clean() -> None:
  path = pathlib.Path(__file__).parents[4] / "shared" / "data" / "traces" / "gsm8k" / "test.jsonl"
  if not path.exists():
    pytest.skip("gsm8k is not beside the project")
  sets = EvaluationSets([EvaluationSet("gsm8k", str(path))])
  questions = [json.loads(line)["question"] for line in path.read_text().splitlines()]
  long = [q for q in questions if len(words(q)) >= 8]
  assert len(long) > 1300 and all(overlap(sets, f"Some text before. {q} Some text after.") for q in long)
  assert overlap(sets, "\n".join(part.__doc__ or "" for part in (json, gzip, pathlib, random, random.Random))) is None


def test_sets_that_cannot_be_read_say_why(make_sets: Make, tmp_path: pathlib.Path) -> None:
  with pytest.raises(ConfigError, match="does not exist"):
    EvaluationSets([EvaluationSet.parse(str(tmp_path / "none.jsonl"))])
  with pytest.raises(ConfigError, match="unknown ending"):
    make_sets("x", "exam.csv")
  with pytest.raises(ConfigError, match="cannot be read"):
    make_sets("{", "exam.json")
  path = tmp_path / "exam.txt"
  path.write_text(LONG)
  with pytest.raises(ConfigError, match="name of its own"):
    EvaluationSets([EvaluationSet.parse(str(path))] * 2)
