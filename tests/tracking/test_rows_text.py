from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from rich.console import Console

from maxagent.tracking.rows import Document, Inspection, Token
from maxagent.tracking.rows_text import inspection_view

MakeDocument = Callable[..., Document]
MakeInspection = Callable[..., Inspection]
GOLDEN = """\
smoke
The batch of step 3
tokens      48  in 1 row, 75.0% full
source  targets  share  supervised  mean weight
trace        40  83.3%       75.0%        0.525
web           8  16.7%      100.0%            1
role   targets  share  supervised  mean weight
call        30  62.5%       66.7%        0.667
tools       10  20.8%      100.0%          0.1
web          8  16.7%      100.0%            1
Asked of content tokens: trace 50.0%, web 50.0%.
the build counted
near duplicates    1,200
left out, and why  documents
empty                      3
web  system  tools  goal  user  plan  think  call  args  obs  back  reflect
say  answer  marker  pad
────────────────────────────────── Row 0 ───────────────────────────────────
│ trace · segment 1 · 23 tokens · 95% supervised
    tools 0.1 <|bos|><|tools|>t<|end|>
     call 1   ✗ <|call|>a<|args|>{}<|end|>
      obs 1   ✗ <|obs|><|err|>no<|end|>
     back 1   <|back|><|end|>
  reflect 0–1 <|reflect|>why<|end|> [muted 1]
   answer 1   <|answer|>b<|end|>
  outcome 1   <|ok|><|eos|>
│ trace · segment 2 · 13 tokens · 75% supervised · hole, prefix first
     goal 1 <|bos|><|fim_pre|><|goal|>g<|end|>
     call 1 <|call|>
     args 1 [hole ↓]<|fim_suf|><|args|>k<|end|>
     call 1 <|fim_mid|>[fill ↑]get
   marker 1 <|eos|>
│ trace · segment 3 · 22 tokens · 43% supervised · decision
     goal 1 <|bos|><|goal|>g<|end|>
   choose 0 <|choose|> [added]
candidate 0 <|call|>put<|args|>k<|end|> [added]
candidate 0 [✓ the true one]<|call|>get<|args|>k<|end|> [added]
   choose 0 <|end|> [added]
     call 1 [made ↑]<|call|>get<|args|>k<|end|><|eos|>
│ 16 places of padding
"""


def _printed(inspection: Inspection, *, width: int = 76, colour: bool = False) -> str:
  out = io.StringIO()
  console = Console(
    file=out, width=width, highlight=False, markup=False, emoji=False, force_terminal=colour, legacy_windows=False,
    color_system="standard" if colour else None,
  )  # fmt: skip
  for piece in inspection_view(inspection):
    console.print(piece)
  return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def test_a_row_is_printed_turn_by_turn_and_nothing_is_told_by_colour_alone(
  told: dict[str, str], make_document: MakeDocument, make_inspection: MakeInspection
) -> None:
  texts = [told[name] for name in ("recovery", "prefix first", "decision")]
  documents = [make_document(text, segment=n) for n, text in enumerate(texts, start=1)]
  assert _printed(make_inspection(*documents)) == GOLDEN


@pytest.mark.parametrize("width", [30, 45, 76, 200])
def test_no_line_is_wider_than_the_terminal_and_no_token_is_lost(
  width: int, told: dict[str, str], make_document: MakeDocument, make_inspection: MakeInspection
) -> None:
  document = make_document(told["recovery"])
  printed = _printed(dataclasses.replace(make_inspection(document), tallies=()), width=width)
  assert max(map(cell_len, printed.splitlines())) <= width
  joined = "".join(printed.split())
  assert all(token.piece in joined for token in document.tokens)


def test_colour_marks_roles_weights_and_failures_where_there_is_colour(
  told: dict[str, str], make_document: MakeDocument, make_inspection: MakeInspection
) -> None:
  printed = _printed(make_inspection(make_document(told["recovery"])), colour=True)
  assert (
    "\x1b[1;31m✗ \x1b[0m\x1b[4;36m<|call|>\x1b[0m\x1b[4;36ma\x1b[0m" in printed
  )  # a call that failed: its colour, underlined
  assert "\x1b[2;90mt\x1b[0m" in printed  # weight 0.1: dim
  assert "\x1b[2;9;95mwhy\x1b[0m" in printed  # weight 0: struck out


def test_text_of_a_trace_steers_neither_the_terminal_nor_rich(make_inspection: MakeInspection) -> None:
  attack = "\x1b]0;title\x07[bold red]x[/]:smile:\x9b31m\u202e\u2066\U000e0041\r\x08"
  token = Token(id=1, piece=attack, role="obs", weight=1.0)
  hurt = dataclasses.replace(
    make_inspection(Document(source=attack, segment=1, tokens=(token,))), title=attack, subtitle=attack,
    facts=((attack, attack, attack),), counts={attack: 1}, rejects=((attack, 1),), shares=(attack,),
  )  # fmt: skip
  printed = _printed(hurt, width=300)
  assert "\\x1b]0;title\\x07[bold red]x[/]:smile:\\x9b31m\\u202e\\u2066\\U000e0041\\r\\x08" in printed
  assert not set("\x1b\x07\x9b\u202e\u2066\U000e0041\r\x08") & set(printed)


def test_a_token_of_another_row_is_named_so(make_inspection: MakeInspection) -> None:
  tokens = (Token(id=1, piece="a"), Token(id=2, piece="b", role="web", weight=1.0, beyond=True))
  assert "web 1 a[next row: b]" in _printed(make_inspection(Document(source="web", segment=1, tokens=tokens)))
