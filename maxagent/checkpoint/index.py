"""Which files of a checkpoint an array lies in, for messages about damage.

Orbax writes all arrays into one OCDBT database: a manifest, a B-tree over keys such as "params.w/0.0" (one chunk of one array),
and files that hold many values after one another. Small values lie in the tree itself.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

_NAMED = 3  # files in a message before "and N more"


def files_of(state: pathlib.Path, name: str) -> str:
  """The files below the folder `state` that hold array `name`: only those missing or too short, if any are; empty if none does.

  Where the manifest or a node of the tree cannot be read, that file is named.
  """
  ends: dict[str, int] = {}
  for file, end in _places(state, f"{stored_name(name)}/".encode()):
    ends[file] = max(end, ends.get(file, 0))
  whole, harmed = [], []
  for file, end in sorted(ends.items()):
    path = state / file
    size = path.stat().st_size if path.exists() else None
    if size is None:
      harmed.append(f"{path} (missing)")
    elif size < end:
      harmed.append(f"{path} ({size:,} bytes, at least {end:,} expected)")
    else:
      whole.append(str(path))
  told = harmed or whole
  return ", ".join(told[:_NAMED]) + (f" and {len(told) - _NAMED} more" if len(told) > _NAMED else "")


def stored_name(name: str) -> str:
  """What Orbax calls an array: params/w is stored as params.w."""
  return name.replace("/", ".")


def _places(state: pathlib.Path, prefix: bytes) -> Iterator[tuple[str, int]]:
  """File of every value whose key begins with `prefix`, and the length that the file must have to hold it."""
  import tensorstore  # here, since only a message about damage pays for it

  base = tensorstore.KvStore.open({"driver": "file", "path": f"{state}/"}).result()
  try:
    nodes = [(tensorstore.ocdbt.dump(base).result()["versions"][-1]["root"]["location"], b"")]
  except (ValueError, KeyError):  # tensorstore's errors are ValueErrors
    yield "manifest.ocdbt", 0
    return
  while nodes:
    node, shared = nodes.pop()
    try:
      entries = tensorstore.ocdbt.dump(base, node).result()["entries"]
    except ValueError:
      yield _place(node)
      continue
    for entry in entries:
      if "location" in entry:
        nodes.append((entry["location"], shared + entry["subtree_common_prefix"]))  # which its keys leave out
      elif (shared + entry["key"]).startswith(prefix) and not entry["key"].endswith(b"/.zarray"):
        yield _place(entry.get("indirect_value", node))


def _place(location: str) -> tuple[str, int]:
  """value:ocdbt.process_0/:d/9f9a:100:20 gives (ocdbt.process_0/d/9f9a, 120)."""
  _, *parts, offset, length = location.split(":")
  return "".join(parts), int(offset) + int(length)
