"""A run on what others made: their tokenizer, ids that exist already, all of it in a bucket."""

import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from maxagent import storage
from maxagent.tokenizer import Tokenizer

END = "<|endoftext|>"


@pytest.fixture(scope="module")
def own(
  small_data: pathlib.Path, maxagent: Callable, upload: Callable, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
  """A folder as configs/smoke.py reads it, here and as gs://bucket/own."""
  folder = tmp_path_factory.mktemp("own")
  texts = [path.read_text(encoding="utf-8") for path in sorted((small_data / "text").iterdir())]
  theirs = tokenizers.Tokenizer(models.BPE())
  theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  theirs.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  theirs.train_from_iterator(
    texts, trainers.BpeTrainer(vocab_size=500, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
  )
  theirs.save(str(folder / "tokenizer.model"))
  end = theirs.token_to_id(END)
  np.concatenate([[*theirs.encode(text).ids, end] for text in texts]).astype(np.uint16).tofile(folder / "ids.bin")
  build = ("data", "build", f"--tokenizer={folder / 'tokenizer.model'}", "--streams=8", "--heldout=100")
  of_ids = ("--kind=tokens", "--dtype=uint16", f"--split-at={end}")
  said = maxagent(*build, *of_ids, f"--output={folder / 'web'}", folder / "ids.bin").stdout
  assert f"read {len(texts)} " in said and "--config.model.vocab_size=564" in said
  maxagent(*build, "--kind=trace", f"--output={folder / 'trace'}", small_data / "episodes")
  for path in (folder / "tokenizer.model", *folder.glob("*/*/*.*")):
    upload(f"own/{path.relative_to(folder)}", path.read_bytes())
  return folder


@pytest.mark.slow
def test_a_run_from_a_bucket_with_a_foreign_tokenizer_is_the_run_from_the_disk(
  own: pathlib.Path, maxagent: Callable, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setenv(storage.CACHE, str(tmp_path / "cache"))
  assert Tokenizer.load(own / "tokenizer.model").vocab_size == 564
  losses = []
  for place in (own, "gs://bucket/own"):
    workdir = tmp_path / str(len(losses))
    played = ["--config.evaluation.families=('kv',)", "--config.evaluation.episodes=2", "--config.evaluation.slots=8"]
    steps = ["--config.training.steps=4", "--config.evaluation.every_steps=4", "--config.model.vocab_size=640"]
    maxagent("train", f"--workdir={workdir}", f"--config=configs/smoke.py:{place}", *steps, *played)
    losses.append([json.loads(line)["train/loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()])
  assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_vocabulary_that_is_neither_the_tokenizers_nor_its_multiple_is_refused(
  own: pathlib.Path, maxagent: Callable, tmp_path: pathlib.Path
) -> None:
  done = maxagent("train", f"--workdir={tmp_path}", f"--config=configs/smoke.py:{own}", "--config.model.vocab_size=768", code=2)
  assert "has 564 tokens and model.vocab_size is 768; set it to 564, or to 640" in done.stderr
