"""A small file tree: mount the disk, list a folder or follow a link, archive the file, read it."""

from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np

from maxagent.environments.base import quote
from maxagent.environments.toolworld.world import (
  Gate,
  Result,
  Spec,
  Step,
  Task,
  ToolWorld,
  draw_words,
  own_first,
  places,
  quoted_list,
)

_FILES_BY_DIFFICULTY = {1: 3, 2: 4, 3: 5}


class Files(ToolWorld):
  """Difficulty n: folders nest n deep above the file, or n links in a row lead to it; from 2 on it is archived first."""

  family = "files"
  specs: ClassVar[dict[str, Spec]] = {
    "mount": Spec("mount disk"),
    "list": Spec("list folder", ("folder",)),
    "read": Spec("read file", ("file",)),
    "unmount": Spec("unmount disk"),
    "size": Spec("measure file", ("file",)),
    "archive": Spec("archive file", ("file",)),
  }
  distractors = ("unmount", "size", "archive")
  write = "archive"
  argument_names: ClassVar[dict[str, tuple[str, ...]]] = {"folder": ("folder", "dir", "at"), "file": ("file", "path", "from")}
  gate = Gate("mount", "unmount", "disk mounted", "disk unmounted", "disk already mounted", "disk not mounted")

  def _draw(self, rng: np.random.Generator) -> list[Task]:
    self._folders: dict[str, list[str]] = {}  # a folder's path to the names of the folders in it
    self._files: dict[str, dict[str, str]] = {}  # a folder's path to its files' texts by name
    self._links: dict[str, str] = {}  # a link's path to the path that it holds
    return self._link_tasks(rng) if rng.integers(2) else self._listing_tasks(rng)

  def _listing_tasks(self, rng: np.random.Generator) -> list[Task]:
    depth, size = self._difficulty, _FILES_BY_DIFFICULTY[self._difficulty]
    words = draw_words(rng, depth + 2 * size + 1)
    self._archive = words.pop()
    paths = ["/".join(words[: n + 1]) for n in range(depth)]
    names, texts = words[depth : depth + size], words[depth + size :]
    self._folders = {path: [words[n + 1]] for n, path in enumerate(paths[:-1])}
    self._files = {paths[-1]: dict(zip(names, texts, strict=True))}
    read, archived = [], []
    for n, (word, place) in itertools.product(range(depth), places(size, difficulty=depth)):
      file, folders = f"{paths[-1]}/{names[place]}", tuple(Step("list", (path,)) for path in paths[n:])
      what = f"the {word} file {'in' if n == depth - 1 else 'below'} folder {quote(paths[n])}"
      read.append(Task(f"give the text of {what}", (*folders, Step("read", (file,))), texts[place]))
      chain = (*folders, Step("archive", (file,)), Step("read", (file,)))
      archived.append(Task(f"archive {what}, then give its text", chain, texts[place]))
    count = len(read) // depth  # those that begin at the outermost folder
    own = own_first([read[:count], archived[:count]][: 1 + (depth > 1)], rng)
    return [*own, *read[count:], *archived[count:]]

  def _link_tasks(self, rng: np.random.Generator) -> list[Task]:
    hops = self._difficulty
    words = draw_words(rng, 2 * hops + 4)
    self._archive, text = words.pop(), words.pop()
    paths = [f"{folder}/{name}" for folder, name in zip(words[::2], words[1::2], strict=True)]
    self._files = {folder: {name: ""} for folder, name in zip(words[::2], words[1::2], strict=True)}
    self._files[words[-2]] = {words[-1]: text}
    self._links = dict(itertools.pairwise(paths))
    chain = tuple(Step("read", (path,)) for path in paths)
    return [Task(f"give the text that file {quote(path)} links to", chain[n:], text) for n, path in enumerate(paths[:-1])]

  def _look_up(self, role: str, args: tuple[str, ...]) -> Result:
    (path,) = args
    if role == "list":
      return self._list(path)
    file = self._drawn(path)
    folder, _, name = file.rpartition("/")
    text = self._files.get(folder, {}).get(name)
    if text is None:
      return Result(f"no file {quote(path)}", "no_file")
    if role == "size":
      return Result(f"size {len(text)}")
    if role == "read":
      return Result(f"link {quote(self._now(self._links[file]))}" if file in self._links else f"text {quote(text)}")
    if path != file:
      return Result(f"file {quote(path)} already archived", "already")
    self._renamed[file] = f"{self._archive}/{name}"
    return Result(f"file {quote(self._now(file))}")

  def _list(self, path: str) -> Result:
    if path in self._folders:
      return Result(f"folder {quoted_list(self._folders[path])}")
    if path == self._archive and self._renamed:
      return Result(f"files {quoted_list([now.rpartition('/')[2] for now in self._renamed.values()])}")
    if path not in self._files:
      return Result(f"no folder {quote(path)}", "no_folder")
    names = [name for name in self._files[path] if f"{path}/{name}" not in self._renamed]
    return Result(f"files {quoted_list(names)}" if names else "no files")
