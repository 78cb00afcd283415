from __future__ import annotations

import ast
import functools
import sys
import textwrap

import pytest

from maxagent.data import harvest as room
from maxagent.data.harvest import Harvest
from maxagent.data.source_items import SourceDocument

CAP = 5_000_000


@functools.cache
def harvested() -> Harvest:
  return room.harvest(CAP)


def documents() -> list[SourceDocument]:
  return [item for item in harvested().items if isinstance(item, SourceDocument)]


def test_the_manifest_says_what_was_found_within_the_cap() -> None:
  manifest = harvested().manifest
  assert manifest["files"] == len(documents()) == len(manifest["origins"]) > 500
  assert manifest["bytes"] == sum(len(d.text.encode()) for d in documents()) <= CAP
  assert manifest["bytes"] > 0.99 * CAP


def test_the_same_machine_harvests_the_same_bytes() -> None:
  assert room.harvest(CAP).manifest == harvested().manifest


def test_origins_name_no_folder_of_the_machine() -> None:
  assert all(
    origin.startswith(("stdlib:", "package:")) and sys.prefix not in origin for origin in harvested().manifest["origins"]
  )


def test_prose_comes_before_code_and_from_every_kind() -> None:
  origins = harvested().manifest["origins"]
  kinds = ["METADATA", "pydoc_data/topics.py#", "#docstrings", ".py"]
  firsts = [
    next(i for i, origin in enumerate(origins) if kind in origin and (kind != ".py" or origin.endswith(".py")))
    for kind in kinds
  ]
  assert firsts[0] < min(firsts[1:]) and firsts[3] > max(firsts[:3])


def test_a_modules_docstrings_and_source_are_one_group_and_share_no_docstring() -> None:
  by_origin = {d.origin: d for d in documents()}
  prose = by_origin["stdlib:abc.py#docstrings"]
  assert "Abstract Base Classes" in prose.text and "abc.abstractmethod(funcobj)" in prose.text
  assert prose.group == "stdlib:abc.py"
  code = by_origin["stdlib:abc.py"]
  assert code.group == prose.group and "A decorator indicating" not in code.text and "def abstractmethod" in code.text


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_docstrings_go_and_code_stays(ends: str) -> None:
  source = textwrap.dedent('''
    """Module."""
    x = "a\x0cb"

    class A:
      """Only a docstring stays, or the class would have no body."""

    def f():
      """Goes,
      both lines."""
      return 1
  ''').replace("\n", ends)
  tree = ast.parse(source)
  found = list(room._docstrings(tree, "m"))
  assert [name for name, _ in found] == ["m", "m.A", "m.f()"]
  code = room._without_docstrings(source, [node for _, node in found])
  assert code.replace(ends, "\n") == textwrap.dedent('''
    x = "a\x0cb"

    class A:
      """Only a docstring stays, or the class would have no body."""

    def f():
      return 1
  ''')
