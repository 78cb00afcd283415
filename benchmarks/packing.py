"""How full whole traces alone make rows, by how many of them are looked at together: what filler text has to fill.

    python benchmarks/packing.py --json
    python benchmarks/packing.py --lengths=DATA/trace/train --lengths=lengths.txt

Packs lengths as training does (`data.packing`: best-fit decreasing within a window of so many traces, and a quarter as many
rows' worth of them), rows of 4,096 and 32,768 tokens. Without
--lengths they are drawn from the shapes below, which scale with the row. A file holds one length a line, or is an .npy of
lengths; a folder of shards is measured by its own table. A trace longer than a row fills rows of its own, all but its end.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from maxagent.data.packing import Bin, pack_window, window_is_full
from maxagent.errors import DataError

ROWS = (4096, 32_768)
WINDOWS = (16, 64, 256, 1024)
TRACES = 16_384  # of each shape
Lengths = npt.NDArray[np.int64]
Shape = Callable[[np.random.Generator, int], Lengths]  # of a row's tokens


def given(lengths: Lengths) -> Shape:
  """Lengths that are what they are, whatever the row."""
  return lambda rng, row: lengths


def log_normal(median: float, sigma: float) -> Shape:
  """Lengths whose logarithm is normal; the median is in rows."""
  return lambda rng, row: np.maximum(2, rng.lognormal(np.log(median * row), sigma, TRACES)).astype(np.int64)


SHAPES: dict[str, Shape] = {
  "log-normal, median 0.3 rows, sigma 0.8": log_normal(0.3, 0.8),
  "log-normal, median 0.05 rows, sigma 1.2": log_normal(0.05, 1.2),
  "log-normal, median 0.6 rows, sigma 0.35": log_normal(0.6, 0.35),
  "log-normal, median 1.2 rows, sigma 0.8": log_normal(1.2, 0.8),
  "uniform, up to a row": lambda rng, row: rng.integers(2, row + 1, TRACES),
  "uniform, 0.5 to 0.7 rows": lambda rng, row: rng.integers(row // 2 + 1, 7 * row // 10, TRACES),
}


def read_lengths(path: pathlib.Path) -> Lengths:
  """The lengths in a text file, an .npy or the lengths.npy of a folder of shards.

  Raises:
    DataError: no such file, or what is in it are not lengths.
  """
  file = path / "lengths.npy" if path.is_dir() else path
  try:
    values = np.load(file) if file.suffix == ".npy" else np.loadtxt(file, dtype=np.int64, ndmin=1)
  except (OSError, ValueError) as error:
    raise DataError(f"{file} cannot be read ({error}); expected one length a line, an .npy, or a folder of shards.") from error
  if values.ndim != 1 or not len(values) or values.dtype.kind not in "iu" or values.min() < 1:
    raise DataError(
      f"{file} holds {values.dtype} of shape {values.shape}; expected lengths, whole numbers above 0, at least one."
    )
  return values.astype(np.int64)


def fill(lengths: Sequence[int], row: int, window: int) -> float:
  """Share of the rows' tokens that whole traces hold, each window packed by itself, the last only if it is full or alone."""
  tokens = rows = 0
  part: list[int] = []
  for n in lengths:
    part.append(n)
    if window_is_full(len(part), sum(part), window=window, capacity=row):
      tokens, rows, part = tokens + sum(part), rows + len(_packed(part, row)), []
  if not rows:
    tokens, rows = sum(part), len(_packed(part, row))
  return tokens / (rows * row)


def _packed(lengths: Sequence[int], row: int) -> list[Bin]:
  return pack_window([[row] * (n // row) + [n % row] * (n % row > 0) for n in lengths], row)


def measure(name: str, lengths: Lengths, row: int) -> dict[str, object]:
  """The fill for every window, and what packing a trace costs with the widest."""
  shuffled = np.random.default_rng(1).permutation(lengths).tolist()
  found = {window: round(fill(shuffled, row, window), 4) for window in WINDOWS}
  started = time.process_time()
  fill(shuffled, row, WINDOWS[-1])
  seconds = time.process_time() - started
  return {
    "lengths": name, "row_tokens": row, "traces": len(lengths), "mean_rows": round(float(lengths.mean()) / row, 3),
    "longer_than_a_row": round(float((lengths > row).mean()), 4), "fill_by_window": found,
    "microseconds_per_trace": round(1e6 * seconds / len(lengths), 2),
  }  # fmt: skip


def main() -> None:
  """Prints a line per lengths and row."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
  parser.add_argument(
    "--lengths", type=pathlib.Path, action="append", metavar="PATH", help="in place of the shapes; may be repeated"
  )
  arguments = parser.parse_args()
  if not arguments.json:
    print(f"{'lengths':<42}{'row':>8}  " + "".join(f"{f'of {window}':>9}" for window in WINDOWS))
  shapes = {str(path): given(read_lengths(path)) for path in arguments.lengths or ()} or SHAPES
  for name, lengths in shapes.items():
    for row in ROWS:
      result = measure(name, lengths(np.random.default_rng(0), row), row)
      fills = result["fill_by_window"]
      assert isinstance(fills, dict)
      line = f"{name[-41:]:<42}{row:>8}  " + "".join(f"{value:>9.1%}" for value in fills.values())
      print(json.dumps(result) if arguments.json else line, flush=True)


if __name__ == "__main__":
  main()
