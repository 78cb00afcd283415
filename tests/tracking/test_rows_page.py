from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import bs4
import pytest

from maxagent.tracking.rows import Document, Inspection, Token
from maxagent.tracking.rows_page import write_rows

MakeDocument = Callable[..., Document]
MakeInspection = Callable[..., Inspection]
ATTACK = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\x07\x9b\u202e\u2066\U000e0041\u200b\x00"


@pytest.fixture
def page(tmp_path: Path) -> Callable[[Inspection], bs4.BeautifulSoup]:
  def write(inspection: Inspection) -> bs4.BeautifulSoup:
    return bs4.BeautifulSoup(write_rows(inspection, tmp_path / "rows.html").read_bytes(), "html.parser")

  return write


Page = Callable[[Inspection], bs4.BeautifulSoup]


def test_every_token_stands_on_the_page_once_and_in_order(
  page: Page, told: dict[str, str], make_document: MakeDocument, make_inspection: MakeInspection
) -> None:
  documents = [make_document(text, segment=n) for n, text in enumerate(told.values(), start=1)]
  soup = page(make_inspection(*documents))
  sections = soup.select("section.document")
  assert len(sections) == len(documents)
  for section, document in zip(sections, documents, strict=True):
    assert [span.text for span in section.select(".t")] == [token.piece for token in document.tokens]
    assert [f"id {token.id}\n" in span["title"] for span, token in zip(section.select(".t"), document.tokens, strict=True)]


@pytest.mark.parametrize(("text", "kind"), [("prefix first", "hole"), ("suffix first", "hole"), ("decision", "decision")])
def test_a_hole_and_its_fill_link_to_one_another_and_a_line_joins_them(
  text: str, kind: str, page: Page, told: dict[str, str], make_document: MakeDocument, make_inspection: MakeInspection
) -> None:
  soup = page(make_inspection(make_document(told["recovery"]), make_document(told[text])))
  there, back = soup.select("a.jump")
  assert (there["href"], back["href"]) == (f"#{back['id']}", f"#{there['id']}")
  assert kind in there["id"]
  joined = soup.select(f".t.{kind}")
  assert joined[-1].find_previous(class_="jump") is back
  assert there.find_previous(class_="t") in joined
  assert there.text == {"hole": "↓ get", "decision": "↓ the one that was made"}[kind]
  turns = soup.select("section.document")[1].select(".turn")
  rail = [n for n, turn in enumerate(turns) if "rail" in turn["class"]]
  assert rail == list(range(rail[0], rail[-1] + 1))
  assert "begins" in turns[rail[0]]["class"] and there in turns[rail[0]].select(".jump")
  assert "ends" in turns[rail[-1]]["class"] and back in turns[rail[-1]].select(".jump")


def test_of_the_candidates_the_true_one_alone_is_marked(
  page: Page, told: dict[str, str], make_document: MakeDocument, make_inspection: MakeInspection
) -> None:
  soup = page(make_inspection(make_document(told["decision"])))
  (true,) = [turn for turn in soup.select(".turn") if turn.select(".pill.good")]
  assert "get" in true.text and "candidate" in true.select_one(".role").text and "added" in true.select_one(".role").text


def test_a_token_shows_role_weight_status_and_flags_and_tells_them_all(
  page: Page, told: dict[str, str], make_document: MakeDocument, make_inspection: MakeInspection
) -> None:
  soup = page(make_inspection(make_document(told["recovery"], segment=7)))
  by_text = {span.text: span for span in soup.select("section .t")}
  assert (
    by_text["no"]["title"]
    == f"'no'  id {100 + sum(map(ord, 'no'))}\nrole obs, status err\nflags none\nweight 1\nposition 11, segment 7"
  )
  assert {"r-obs", "err"} <= set(by_text["no"]["class"])
  assert by_text["why"]["title"].splitlines()[2:4] == ["flags muted", "weight 0"]
  assert {"w0", "f-muted"} <= set(by_text["why"]["class"])
  assert "nothing in this row predicts it" in by_text["<|bos|>"]["title"]
  assert [turn.select_one(".role").text.split()[0] for turn in soup.select(".turn.failed")] == ["call", "obs"]


def test_the_shade_of_a_token_grows_with_its_weight_and_the_legend_says_how(
  page: Page, told: dict[str, str], make_document: MakeDocument, make_inspection: MakeInspection
) -> None:
  soup = page(make_inspection(make_document(told["recovery"])))
  style = soup.style.text
  shades = [float(style.split(f".w{level} {{ --shade: ")[1].split(";")[0]) for level in range(3)]
  assert shades == sorted(shades) and shades[0] == 0 and shades[2] == 1
  assert [item.text.strip() for item in soup.select("[aria-label=Weights] li")] == ["weight 0", "weight 0.1", "weight 1"]
  assert "w1" in next(span for span in soup.select("section .t") if span.text == "t")["class"]


def test_text_of_a_trace_is_shown_and_never_obeyed(page: Page, tmp_path: Path, make_inspection: MakeInspection) -> None:
  token = Token(id=1, piece=ATTACK, role="obs", weight=1.0, flags=("hole",))
  suffix = Token(id=2, piece="<|fim_suf|>", reserved="fim_suf", role="marker", flags=("added",))
  hurt = dataclasses.replace(
    make_inspection(Document(source=ATTACK, segment=1, tokens=(suffix, token))), title=ATTACK, subtitle=ATTACK,
    facts=((ATTACK, ATTACK, ATTACK),), counts={ATTACK: 1}, rejects=((ATTACK, 1),), shares=(ATTACK,),
  )  # fmt: skip
  soup = page(hurt)
  assert len(soup.select("script")) == 1 and not soup.select("img, iframe, object, form, base")
  assert not [name for tag in soup.find_all(True) for name in tag.attrs if name.startswith("on")]
  assert "&lt;script&gt;alert(1)" in (tmp_path / "rows.html").read_text()
  assert not set("\x1b\x07\x9b\u202e\u2066\U000e0041\u200b\x00") & set((tmp_path / "rows.html").read_text())
  assert "\\x1b[31m" in soup.select_one("section .t.r-obs").text


def test_a_text_that_spells_a_marker_does_not_look_like_one(page: Page, make_inspection: MakeInspection) -> None:
  spelled = Token(id=7, piece="<|end|>", role="obs", weight=1.0)
  real = Token(id=3, piece="<|end|>", reserved="end", role="obs", weight=1.0)
  soup = page(make_inspection(Document(source="trace", segment=1, tokens=(spelled, real))))
  assert ["marker" in span["class"] for span in soup.select("section .t")] == [False, True]


def test_the_page_asks_nobody_for_anything_and_runs_its_own_script_alone(
  page: Page, tmp_path: Path, told: dict[str, str], make_document: MakeDocument, make_inspection: MakeInspection
) -> None:
  soup = page(make_inspection(make_document(told["decision"])))
  digest = base64.b64encode(hashlib.sha256(soup.script.string.encode()).digest()).decode()
  policy = soup.select_one("meta[http-equiv=Content-Security-Policy]")["content"]
  assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
  assert all(tag["href"].startswith(("#", "data:")) for tag in soup.select("[href]")) and not soup.select("[src]")
  text = (tmp_path / "rows.html").read_text()
  assert "http:" not in text and "https:" not in text and "@import" not in text and "prefers-color-scheme: dark" in text


def test_ids_are_unique_and_every_link_has_its_end(
  page: Page, told: dict[str, str], make_document: MakeDocument, make_inspection: MakeInspection
) -> None:
  soup = page(make_inspection(*(make_document(text) for text in told.values())))
  ids = [tag["id"] for tag in soup.select("[id]")]
  assert len(ids) == len(set(ids))
  assert {link["href"] for link in soup.select("a")} <= {f"#{name}" for name in ids}


def test_a_document_can_be_entered_with_the_keyboard(
  page: Page, told: dict[str, str], make_document: MakeDocument, make_inspection: MakeInspection
) -> None:
  soup = page(make_inspection(make_document(told["recovery"])))
  assert [turns["tabindex"] for turns in soup.select(".turns")] == ["0"]
  assert soup.select_one("#tip")["role"] == "status"


def test_what_stands_on_top_and_what_the_build_counted_is_there(page: Page, make_inspection: MakeInspection) -> None:
  text = page(make_inspection()).get_text(" ", strip=True)
  for expected in (
    "smoke",
    "in 1 row, 75.0% full",
    "trace 40 83.3% 75.0% 0.525",
    "near duplicates 1,200",
    "empty 3",
    "16 places of padding",
  ):
    assert expected in text, expected


def test_a_token_of_another_row_is_told_from_those_of_this(page: Page, make_inspection: MakeInspection) -> None:
  tokens = (Token(id=1, piece="a"), Token(id=2, piece="b", role="web", weight=1.0, beyond=True))
  soup = page(make_inspection(Document(source="web", segment=1, tokens=tokens)))
  assert ["beyond" in span["class"] for span in soup.select("section .t")] == [False, True]
  assert "its token stands in another row" in soup.select("section .t")[1]["title"]


def test_a_tally_of_tokens_shows_no_column_about_weights(page: Page, make_inspection: MakeInspection) -> None:
  tallies = tuple(dataclasses.replace(tally, supervised=None, weight=None) for tally in make_inspection().tallies)
  heads = page(dataclasses.replace(make_inspection(), tallies=tallies)).find("table").select("th")
  assert [head.text for head in heads] == ["Source", "Tokens", "Share"]


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, make_inspection: MakeInspection) -> None:
  with pytest.raises(OSError, match="absent"):
    write_rows(make_inspection(), tmp_path / "absent" / "rows.html")
  assert list(tmp_path.iterdir()) == []
