"""What every reader hands on: a text with its origin, or the reason why there is none; and long texts in parts."""

from __future__ import annotations

import dataclasses

PART_BYTES = 16_384


@dataclasses.dataclass(frozen=True, slots=True)
class SourceDocument:
  """A text and where it was found. Documents of one `group` are held out together, as one repeats or explains another."""

  text: str
  origin: str
  group: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Reject:
  """Something that is not read, and why; `undecodable` when its bytes are not the text they claim to be."""

  origin: str
  reason: str
  undecodable: bool = False


def decode_text(data: bytes, origin: str, *, encoding: str = "utf-8-sig") -> SourceDocument | Reject:
  """The text of some bytes; a byte order mark is dropped."""
  try:
    return SourceDocument(data.decode(encoding), origin)
  except (UnicodeDecodeError, LookupError) as error:
    return Reject(origin, f"not {encoding.removesuffix('-sig').upper()}: {error}", undecodable=True)


def cut_text(text: str, part_bytes: int = PART_BYTES) -> list[str]:
  """A text in parts of at most `part_bytes` of UTF-8 that join to it: cut at paragraph ends, else line ends, else spaces.

  Example, 8 bytes a part: `ab cd\\n\\nefg hij` gives [`ab cd\\n\\n`, `efg hij`].
  """
  data = text.encode()
  parts: list[str] = []
  start = 0
  while len(data) - start > part_bytes:
    end = _cut_place(data, start, start + part_bytes)
    parts.append(data[start:end].decode())
    start = end
  return [*parts, data[start:].decode()]


def _cut_place(data: bytes, start: int, stop: int) -> int:
  # A cut in the first half would leave a crumb: the next lesser kind of end is better.
  least = start + (stop - start) // 2
  for mark in (b"\n\n", b"\n", b" "):
    found = data.rfind(mark, least, stop)
    if found >= 0:
      return found + len(mark)
  while data[stop] & 0xC0 == 0x80:
    stop -= 1
  return stop
