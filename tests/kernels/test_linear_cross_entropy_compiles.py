"""Ahead-of-time compilation for real TPU topologies, where libtpu is installed (`make test-kernels` installs it)."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The most that a tile of 512 x 512 logits of a model 4,096 wide may score: tokamax's figures (docs/kernels.md).
LIMITS = {"v5e": (16384, 51162), "v5p": (16384, 50740), "v6e": (5027, 15602)}

pytestmark = [
  pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
  pytest.mark.timeout(1800),
]


def compiled(*options: str) -> list[dict]:
  command = [sys.executable, str(ROOT / "benchmarks" / "linear_cross_entropy.py"), "--json", "--only", "ours", *options]
  done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
  assert rows and not [row for row in rows if "error" in row], rows
  return rows


def test_forward_and_backward_compile_for_a_tpu():
  (row,) = compiled("--chips", "v5e", "--shape", "2048", "512", "50304")
  assert {"forward", "backward"} < set(row)


@pytest.mark.kernels
@pytest.mark.parametrize("model", [768, 1408, 2560, 4096, 8192])
@pytest.mark.parametrize("vocabulary", [50257, 128256, 262144])
def test_every_width_and_vocabulary_compiles_for_every_tpu(model, vocabulary):
  assert len(compiled("--shape", "4096", str(model), str(vocabulary))) == 3


@pytest.mark.kernels
def test_tiles_score_no_more_than_the_public_kernels():
  for row in compiled():
    forward, backward = LIMITS[row["chip"]]
    assert row["forward"]["score"] <= forward and row["backward"]["score"] <= backward, row


@pytest.mark.kernels
def test_nothing_but_a_few_numbers_a_token_is_held_beside_inputs_and_outputs():
  for row in compiled("--shape", "32768", "4096", "262144"):
    assert row["temp_bytes"] < 128 * (32768 + 262144)
