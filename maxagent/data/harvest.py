"""Real text that lies on any machine with Python: documentation first, then sources of the standard library.

Files are read, never imported. Names are relative (`stdlib:json/decoder.py`, `package:numpy-2.4.6/...`), so that two machines
with the same packages harvest the same bytes.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import itertools
import pathlib
import re
import sysconfig
import warnings
from collections.abc import Iterator
from typing import Any

import xxhash

from maxagent.data.source_items import Reject, SourceDocument, decode_text

BYTE_CAP = 12_000_000
_SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "testing"}
_DOC_SUFFIXES = (".md", ".rst", ".txt")
# Legal boilerplate is the same in every package; lists of names are no text.
_SKIPPED_STEMS = ("license", "licence", "notice", "copying", "copyright", "authors", "requirements", "cmakelists", "vendor")
_TOPICS = "pydoc_data/topics.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Harvest:
  """Documents (or rejects) in order, and the manifest: files, documents, bytes and their digest."""

  items: list[SourceDocument | Reject]
  manifest: dict[str, Any]


def harvest(byte_cap: int = BYTE_CAP) -> Harvest:
  """This machine's Python texts, by kind and sorted path, up to `byte_cap` bytes of UTF-8.

  Kinds in order: descriptions of installed packages, their .md, .rst and .txt documents, the standard library's reference
  topics and docstrings, its sources without docstrings. A module's docstrings and source form one group.
  """
  items: list[SourceDocument | Reject] = []
  digest = xxhash.xxh3_128()
  size = 0
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other people's invalid escapes
    for item in itertools.chain(_descriptions(), _package_documents(), _library()):
      if isinstance(item, SourceDocument):
        data = item.text.encode("utf-8", errors="surrogatepass")
        if size + len(data) > byte_cap:
          continue
        size += len(data)
        digest.update(f"{item.origin}\0{len(data)}\0".encode() + data)
      items.append(item)
  origins = [item.origin for item in items if isinstance(item, SourceDocument)]
  manifest = {"byte_cap": byte_cap, "files": len(origins), "bytes": size, "digest": digest.hexdigest(), "origins": origins}
  return Harvest(items=items, manifest=manifest)


def _distributions() -> list[importlib.metadata.Distribution]:
  """Installed packages by name, without ourselves; the first of a name on the path wins, as in an import."""
  found: dict[str, importlib.metadata.Distribution] = {}
  for distribution in importlib.metadata.distributions():
    name = distribution.metadata["Name"]
    if name and name.lower() != "maxagent":
      found.setdefault(name.lower(), distribution)
  return [found[name] for name in sorted(found)]


def _label(distribution: importlib.metadata.Distribution) -> str:
  return f"package:{distribution.metadata['Name']}-{distribution.version}"


def _descriptions() -> Iterator[SourceDocument | Reject]:
  for distribution in _distributions():
    text = distribution.metadata.get("Description") or distribution.metadata.get_payload()  # type: ignore[attr-defined]
    if isinstance(text, str) and text.strip():
      yield SourceDocument(text, f"{_label(distribution)}/METADATA")


def _package_documents() -> Iterator[SourceDocument | Reject]:
  for distribution in _distributions():
    for file in sorted(distribution.files or ()):
      path = pathlib.Path(str(distribution.locate_file(file)))
      if _is_document(file) and path.is_file():
        yield decode_text(path.read_bytes(), f"{_label(distribution)}/{file.as_posix()}")


def _is_document(file: pathlib.PurePath) -> bool:
  if file.suffix.lower() not in _DOC_SUFFIXES or file.stem.lower().startswith(_SKIPPED_STEMS):
    return False
  return not any(part in _SKIPPED_FOLDERS or part.endswith((".dist-info", ".egg-info")) for part in file.parts)


def _library() -> Iterator[SourceDocument | Reject]:
  root = pathlib.Path(sysconfig.get_path("stdlib"))
  sources: list[SourceDocument] = []
  for path in sorted(root.rglob("*.py")):
    name = path.relative_to(root)
    if _SKIPPED_FOLDERS.isdisjoint(name.parts):
      item = decode_text(path.read_bytes(), f"stdlib:{name.as_posix()}")
      yield from _module(item, sources)
  yield from sources


def _module(item: SourceDocument | Reject, sources: list[SourceDocument]) -> Iterator[SourceDocument | Reject]:
  """The prose of a module now; its source is kept for later."""
  if isinstance(item, Reject):
    yield item
    return
  try:
    tree = ast.parse(item.text)
  except (SyntaxError, ValueError) as error:
    yield Reject(item.origin, f"not Python of this version: {error}")
    return
  if item.origin.endswith(_TOPICS):
    yield from _topics(tree, item.origin)
    return
  documented = list(_docstrings(tree, item.origin.removeprefix("stdlib:").removesuffix(".py").replace("/", ".")))
  prose = "\n\n".join(f"{name}\n\n{ast.get_docstring(node)}" for name, node in documented)
  if prose:
    yield SourceDocument(prose + "\n", f"{item.origin}#docstrings", group=item.origin)
  code = _without_docstrings(item.text, [node for _, node in documented])
  if code.strip():
    sources.append(SourceDocument(code, item.origin, group=item.origin))


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _docstrings(node: _Documented, name: str) -> Iterator[tuple[str, _Documented]]:
  if ast.get_docstring(node, clean=False):
    yield name, node
  for child in node.body:
    if isinstance(child, ast.ClassDef):
      yield from _docstrings(child, f"{name}.{child.name}")
    elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
      yield from _docstrings(child, f"{name}.{child.name}({', '.join(argument.arg for argument in child.args.args)})")


def _without_docstrings(text: str, nodes: list[_Documented]) -> str:
  """The source with each docstring's lines gone, unless it is all that a body has."""
  lines = re.split(r"(?<=\n)", text)  # not splitlines: it also cuts at form feeds, which are no line ends to Python
  for node in nodes:
    first = node.body[0]
    alone = len(node.body) == 1 and not isinstance(node, ast.Module)
    if not alone and first.end_lineno is not None:
      lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)
  return "".join(lines)


def _topics(tree: ast.Module, origin: str) -> Iterator[SourceDocument]:
  """The language reference that `help()` shows: one dictionary of texts."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Dict):
      for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str):
          yield SourceDocument(value.value, f"{origin}#{key.value!s}")
