"""The style that a linter does not know: what the rooms may hold, and what a name, a signature and a file look like."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "maxagent", ROOT / "kernels" / "maxagent_kernels")
SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
ROOMS_THAT_START_WITHOUT_JAX = ("traces", "tokenizer", "environments", "tracking", "config", "errors")
LINES_PER_FILE = 500
PARAMETERS = 7
Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(encoding="utf-8"))


def where(path: pathlib.Path, node: ast.AST, what: str) -> str:
  return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)} {what}"


def functions() -> list[tuple[pathlib.Path, Function]]:
  return [(path, node) for path in SOURCES for node in ast.walk(tree(path)) if isinstance(node, Function)]


def public_definitions(path: pathlib.Path) -> list[Function | ast.ClassDef]:
  """Public functions and classes of a module, and the public methods of those classes."""
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
  top = [n for n in tree(path).body if isinstance(n, kinds) and not n.name.startswith("_")]
  methods = [
    m for n in top if isinstance(n, ast.ClassDef) for m in n.body if isinstance(m, kinds) and not m.name.startswith("_")
  ]
  return top + methods


def imported(node: ast.AST) -> list[str]:
  if isinstance(node, ast.Import):
    return [alias.name for alias in node.names]
  if isinstance(node, ast.ImportFrom):
    return [node.module or ""] if node.level == 0 else ["a relative import"]
  return []


def is_override(node: Function | ast.ClassDef) -> bool:
  return any(isinstance(d, ast.Name) and d.id in ("override", "overload") for d in node.decorator_list)


def test_every_public_name_has_a_docstring() -> None:
  missing = [
    where(path, node, node.name)
    for path in SOURCES
    for node in public_definitions(path)
    if not is_override(node) and ast.get_docstring(node) is None
  ]
  assert missing == []


def test_every_module_with_code_says_what_it_is() -> None:
  assert [str(path.relative_to(ROOT)) for path in SOURCES if tree(path).body and ast.get_docstring(tree(path)) is None] == []


def test_every_function_is_annotated() -> None:
  missing = []
  for path, node in functions():
    arguments = node.args
    named = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    starred = [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    bare = [a.arg for a in named + starred if a.annotation is None and a.arg not in ("self", "cls")]
    if bare or node.returns is None:
      missing.append(where(path, node, f"{node.name}: {', '.join(bare) or 'result'}"))
  assert missing == []


def test_no_function_takes_more_than_seven_parameters() -> None:
  long = []
  for path, node in functions():
    named = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    # A callback that only shows how far the work is changes nothing of the result.
    names = [a.arg for a in named if a.arg not in ("self", "cls", "progress")]
    # A kernel's and an attention backend's arrays (q, k, v and what describes them) are one contract, kept in one place.
    if len(names) > PARAMETERS and names[:3] != ["q", "k", "v"] and not names[0].startswith("q_"):
      long.append(where(path, node, f"{node.name} takes {len(names)}"))
  assert long == []


def test_no_file_is_longer_than_five_hundred_lines() -> None:
  tests = sorted((ROOT / "tests").rglob("*.py"))
  lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES + tests}
  assert {name: lines for name, lines in lengths.items() if lines > LINES_PER_FILE} == {}


def test_no_room_or_module_is_named_after_nothing() -> None:
  empty = re.compile(r"^(utils?|helpers?|common|misc|lib)\d*$")
  assert [
    str(p.relative_to(ROOT)) for p in SOURCES if any(empty.match(part) for part in p.relative_to(ROOT).with_suffix("").parts)
  ] == []


def test_kernels_has_no_init_so_that_no_wheel_installs_a_module_of_that_name() -> None:
  assert not (ROOT / "kernels" / "__init__.py").exists()


def test_every_folder_of_a_package_is_a_package() -> None:
  folders = {path.parent for path in SOURCES}
  assert [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()] == []


def test_kernels_import_jax_and_the_standard_library_only() -> None:
  allowed = {"jax", "jaxtyping", "maxagent_kernels", *sys.stdlib_module_names}
  kernels = [path for path in SOURCES if PACKAGES[1] in path.parents]
  found = [
    where(path, node, name)
    for path in kernels
    for node in ast.walk(tree(path))
    for name in imported(node)
    if name.split(".")[0] not in allowed
  ]
  assert found == []


def test_configs_import_only_the_config_room() -> None:
  found = [
    where(path, node, name)
    for path in CONFIGS
    for node in ast.walk(tree(path))
    for name in imported(node)
    if name != "__future__" and not (name == "maxagent.config" or name.startswith("maxagent.config."))
  ]
  assert found == []


def test_every_config_names_its_command_in_its_header() -> None:
  assert [p.name for p in CONFIGS if "maxagent train" not in (ast.get_docstring(tree(p)) or "")] == []


@pytest.mark.parametrize("room", ROOMS_THAT_START_WITHOUT_JAX)
def test_a_room_that_needs_no_jax_names_none_at_import(room: str) -> None:
  files = [p for p in SOURCES if p.relative_to(ROOT).with_suffix("").parts[:2] == ("maxagent", room)]
  assert files
  found = [
    where(path, node, name)
    for path in files
    for node in tree(path).body
    for name in imported(node)
    if name.split(".")[0] in ("jax", "flax", "optax", "orbax", "grain")  # grain imports jax itself
  ]
  assert found == []


def test_reading_traces_and_playing_environments_never_loads_jax() -> None:
  rooms = ("traces", "tokenizer", "environments", "tracking", "config", "errors")
  modules = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCES
    if path.relative_to(ROOT).with_suffix("").parts[1:2] and path.relative_to(ROOT).with_suffix("").parts[1] in rooms
  ]
  code = f"import importlib, sys\nfor m in {modules!r}:\n  importlib.import_module(m)\n  assert 'jax' not in sys.modules, m"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_no_file_names_a_place_on_one_machine() -> None:
  place = re.compile(r"(?<![\w.$}])/(?:root|work|home/\w+|Users/\w+)(?:/|\b)")
  folders = ("maxagent", "kernels", "configs", "launch", "benchmarks", "tests", "requirements", ".ci", "docs")
  files = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
  files += [ROOT / name for name in ("setup.py", "pyproject.toml", "Makefile", "Dockerfile")]
  found = []
  for path in files:
    if (
      path.suffix in (".py", ".sh", ".toml", ".md", ".lock", ".j2", ".json", ".yaml", "")
      and path != pathlib.Path(__file__).resolve()
    ):
      for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        found += [f"{path.relative_to(ROOT)}:{number}"] if place.search(line) else []
  assert found == []


def test_there_is_no_to_do_left_in_the_sources() -> None:
  found = [
    f"{path.relative_to(ROOT)}:{number}"
    for path in SOURCES + CONFIGS
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    if re.search(r"\b(TODO|FIXME|XXX)\b", line)
  ]
  assert found == []
