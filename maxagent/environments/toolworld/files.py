"""A small file tree: mount the disk, list a folder or follow a link, read the file."""

from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np

from maxagent.environments.base import quote
from maxagent.environments.toolworld.world import Gate, Result, Spec, Step, Task, ToolWorld, draw_place, draw_words, quoted_list

_FILES_BY_DIFFICULTY = {1: 3, 2: 4, 3: 5}


class Files(ToolWorld):
  """Difficulty n: folders nest n deep above the file, or n links in a row lead to it."""

  family = "files"
  specs: ClassVar[dict[str, Spec]] = {
    "mount": Spec("mount disk"),
    "list": Spec("list folder", ("folder",)),
    "read": Spec("read file", ("file",)),
    "unmount": Spec("unmount disk"),
    "size": Spec("measure file", ("file",)),
  }
  distractors = ("unmount", "size")
  argument_names: ClassVar[dict[str, tuple[str, ...]]] = {"folder": ("folder", "dir", "at"), "file": ("file", "path", "from")}
  gate = Gate("mount", "unmount", "disk mounted", "disk unmounted", "disk already mounted", "disk not mounted")

  def _draw(self, rng: np.random.Generator) -> Task:
    self._folders: dict[str, list[str]] = {}  # a folder's path to the names of the folders in it
    self._files: dict[str, dict[str, str]] = {}  # a folder's path to its files' texts by name
    self._links: dict[str, str] = {}  # a link's path to the path that it holds
    return self._link_task(rng) if rng.integers(2) else self._listing_task(rng)

  def _listing_task(self, rng: np.random.Generator) -> Task:
    depth, size = self._difficulty, _FILES_BY_DIFFICULTY[self._difficulty]
    words = draw_words(rng, depth + 2 * size)
    paths = ["/".join(words[: n + 1]) for n in range(depth)]
    names, texts = words[depth : depth + size], words[depth + size :]
    self._folders = {path: [words[n + 1]] for n, path in enumerate(paths[:-1])}
    self._files = {paths[-1]: dict(zip(names, texts, strict=True))}
    word, place = draw_place(rng, size, difficulty=self._difficulty)
    chain = (*(Step("list", (path,)) for path in paths), Step("read", (f"{paths[-1]}/{names[place]}",)))
    where = "in" if depth == 1 else "below"
    return Task(f"give the text of the {word} file {where} folder {quote(paths[0])}", chain, texts[place])

  def _link_task(self, rng: np.random.Generator) -> Task:
    hops = self._difficulty
    words = draw_words(rng, 2 * hops + 3)
    text = words.pop()
    paths = [f"{folder}/{name}" for folder, name in zip(words[::2], words[1::2], strict=True)]
    self._files = {folder: {name: ""} for folder, name in zip(words[::2], words[1::2], strict=True)}
    self._files[words[-2]] = {words[-1]: text}
    self._links = dict(itertools.pairwise(paths))
    chain = tuple(Step("read", (path,)) for path in paths)
    return Task(f"give the text that file {quote(paths[0])} links to", chain, text)

  def _look_up(self, role: str, args: tuple[str, ...]) -> Result:
    (path,) = args
    if role == "list":
      return self._list(path)
    folder, _, name = path.rpartition("/")
    text = self._files.get(folder, {}).get(name)
    if text is None:
      return Result(f"no file {quote(path)}", "no_file")
    if role == "size":
      return Result(f"size {len(text)}")
    return Result(f"link {quote(self._links[path])}" if path in self._links else f"text {quote(text)}")

  def _list(self, path: str) -> Result:
    if path in self._folders:
      return Result(f"folder {quoted_list(self._folders[path])}")
    if path in self._files:
      return Result(f"files {quoted_list(list(self._files[path]))}")
    return Result(f"no folder {quote(path)}", "no_folder")
