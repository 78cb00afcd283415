"""The benchmark of packing measures what it says."""

import importlib.util
import json
import pathlib
import sys
from types import ModuleType

import numpy as np
import pytest

from maxagent.errors import DataError

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "packing.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
  spec = importlib.util.spec_from_file_location("packing_benchmark", SCRIPT)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_fill_is_the_share_of_rows_that_whole_traces_hold(benchmark: ModuleType):
  assert benchmark.fill([60, 60, 40, 40], 100, 4) == 1.0
  assert benchmark.fill([60, 60, 40, 40], 100, 2) == pytest.approx(200 / 300)  # 60 and 60 share no row, 40 and 40 do
  assert benchmark.fill([250], 100, 1) == pytest.approx(250 / 300)


def test_lengths_come_from_text_from_arrays_and_from_folders_of_shards(benchmark: ModuleType, tmp_path: pathlib.Path):
  (tmp_path / "a.txt").write_text("12\n7\n300\n")
  np.save(tmp_path / "b.npy", np.array([12, 7, 300], np.uint32))
  np.save(tmp_path / "lengths.npy", np.array([12, 7, 300], np.uint32))
  for path in (tmp_path / "a.txt", tmp_path / "b.npy", tmp_path):
    assert benchmark.read_lengths(path).tolist() == [12, 7, 300]


@pytest.mark.parametrize("content", ["", "3.5\n", "0\n4\n", "many\n"])
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_a_file_that_holds_no_lengths_is_refused(benchmark: ModuleType, tmp_path: pathlib.Path, content: str):
  (tmp_path / "a.txt").write_text(content)
  with pytest.raises(DataError, match=r"expected .*lengths|one length a line"):
    benchmark.read_lengths(tmp_path / "a.txt")
  with pytest.raises(DataError, match="cannot be read"):
    benchmark.read_lengths(tmp_path / "none.npy")


def test_log_normal_traces_fill_more_the_more_are_looked_at(
  benchmark: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
  name = "log-normal, median 0.3 rows, sigma 0.8"
  monkeypatch.setattr(benchmark, "SHAPES", {name: benchmark.SHAPES[name]})
  monkeypatch.setattr(sys, "argv", ["packing.py", "--json"])
  benchmark.main()
  results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [result["row_tokens"] for result in results] == [4096, 32_768]
  for result in results:
    fills = list(result["fill_by_window"].values())
    assert fills == sorted(fills) and fills[1] > 0.96 and fills[-1] > 0.995
