"""Vocabularies that someone else trained: what they keep, and that no text produces a token of control."""

from __future__ import annotations

import functools
import io
import json
import logging
import pathlib
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from maxagent.errors import TokenizerError
from maxagent.tokenizer import Tokenizer
from maxagent.traces.schema import RESERVED

CORPUS = [
  "def add(left, right):\n    return left + right\n\n\nfor row in range(1024):\n\tprint(add(row, 7))\n" * 5,
  "The quick brown fox jumps over the lazy dog; it does so often, and the dog does not mind it at all. " * 5,
  "Größe, naïve café, Ελληνικά, русский текст, 中文字符, 日本語のテキスト, 🙂🙃 <s> </s> <unk> [CLS] [UNK] <|endoftext|>\n" * 3,
  "".join(map(chr, [*range(0x21, 0x7F), *range(0xA1, 0x100)])),
]
CONTROLS = ["<s>", "</s>", "<unk>", "<|endoftext|>", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "<pad>"]
SPELLINGS = [*(f"<|{name}|>" for name in RESERVED), *CONTROLS]
TEXTS = [
  '{"name":"open_box","args":["Key 1"]}',
  "def f(x):\n    return x\n\n\n\tprint(  f(1))\r\n",
  " leading and trailing ",
  "Größe naïve e\u0301 ﬁ Ελληνικά 中文 🙂 \U0001f9ff",
  "nul \x00 bell \x07 mark \u2581 end \u2581\u2581",
  "",
  " ",
]


def byte_level(**model: Any) -> tokenizers.Tokenizer:
  trained = tokenizers.Tokenizer(models.BPE(**model))
  trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  trained.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=CONTROLS, initial_alphabet=alphabet, show_progress=False)
  trained.train_from_iterator(CORPUS, trainer)
  trained.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
  return trained


def normalized() -> tokenizers.Tokenizer:
  trained = byte_level()
  trained.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
  return trained


def unigram() -> tokenizers.Tokenizer:
  """Pieces with byte fallback and a space before every text, as converters write them for Llama 2."""
  trained = tokenizers.Tokenizer(models.Unigram())
  trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
  byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
  trainer = trainers.UnigramTrainer(
    vocab_size=600, special_tokens=[*CONTROLS, *byte_pieces], unk_token="<unk>", show_progress=False
  )
  trained.train_from_iterator(CORPUS, trainer)
  record = json.loads(trained.to_str())
  record["added_tokens"] = [token for token in record["added_tokens"] if token["content"] in CONTROLS]
  record["model"]["byte_fallback"] = True
  trained = tokenizers.Tokenizer.from_str(json.dumps(record))
  trained.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
  )
  return trained


def metaspace() -> tokenizers.Tokenizer:
  """The same with another way of adding the space: it adds none to a text that begins with one."""
  trained = unigram()
  trained.normalizer = None
  trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
  return trained


def word_piece() -> tokenizers.Tokenizer:
  trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  trained.normalizer = normalizers.BertNormalizer(lowercase=True)
  trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  trained.decoder = decoders.WordPiece()
  trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=CONTROLS, show_progress=False)
  trained.train_from_iterator(CORPUS, trainer)
  return trained


def whole_words() -> tokenizers.Tokenizer:
  trained = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
  trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  trained.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=CONTROLS, show_progress=False))
  return trained


def pieces(**options: Any) -> bytes:
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=480, byte_fallback=True, minloglevel=2, **options
  )
  return model.getvalue()


@functools.cache
def file(kind: str) -> bytes:
  made: dict[str, Callable[[], tokenizers.Tokenizer | bytes]] = {
    "byte_level": byte_level,
    "normalized": normalized,
    "unigram": unigram,
    "metaspace": metaspace,
    "word_piece": word_piece,
    "whole_words": whole_words,
    "sentencepiece": pieces,
    "sentencepiece_identity": lambda: pieces(
      normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False, model_type="bpe"
    ),
  }
  model = made[kind]()
  return model if isinstance(model, bytes) else model.to_str().encode()


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
  return Tokenizer(file(kind))


EXACT = ("byte_level", "sentencepiece_identity")
KINDS = (*EXACT, "normalized", "unigram", "metaspace", "word_piece", "whole_words", "sentencepiece")


def own_controls(kind: str) -> set[int]:
  """Ids of the foreign control tokens, the unknown one aside, read off the file by the foreign library itself."""
  if kind.startswith("sentencepiece"):
    processor = sentencepiece.SentencePieceProcessor(model_proto=file(kind))
    return {token for token in range(processor.get_piece_size()) if processor.is_control(token)}
  theirs = tokenizers.Tokenizer.from_str(file(kind).decode())
  return {theirs.token_to_id(name) for name in CONTROLS} - {tokenizer(kind).unknown_id}


@pytest.mark.parametrize("kind", KINDS)
def test_the_reserved_block_is_appended_after_all_ids_of_the_file(kind: str) -> None:
  if kind.startswith("sentencepiece"):
    size = sentencepiece.SentencePieceProcessor(model_proto=file(kind)).get_piece_size()
  else:
    # The library's own count is too small for a vocabulary with gaps, such as that of whole words here.
    size = 1 + max(tokenizers.Tokenizer.from_str(file(kind).decode()).get_vocab().values())
  ours = tokenizer(kind)
  assert [ours.id(name) for name in RESERVED] == list(range(size, size + 64))
  assert ours.vocab_size == size + 64
  assert own_controls(kind) and max(own_controls(kind)) < size


@pytest.mark.parametrize("kind", KINDS)
def test_none_of_20000_injections_gives_a_token_of_control(kind: str) -> None:
  draw = random.Random(0)
  glue = ["", " ", "\n", "a", "<", "|>", "\U0010ffff", "\U0010ffff0;", "\U0010ffff1; ", "▁"]
  texts = ["".join(draw.choice(glue) + draw.choice(SPELLINGS) for _ in range(draw.randint(1, 3))) for _ in range(20_000)]
  ours = tokenizer(kind)
  ids = set().union(*ours.encode_batch(texts))
  assert ids.isdisjoint(own_controls(kind))
  assert max(ids) < ours.bos_id
  if kind in EXACT:
    assert ours.unknown_id not in ids
    assert [ours.decode(row) for row in ours.encode_batch(texts[:500])] == texts[:500]


@pytest.mark.parametrize("kind", ["unigram", "whole_words"])
def test_the_library_alone_would_have_given_a_control_token_for_text(kind: str) -> None:
  theirs = tokenizers.Tokenizer.from_str(file(kind).decode())
  theirs.encode_special_tokens = True
  assert set(theirs.encode("a <s> b", add_special_tokens=False).ids) & own_controls(kind)
  assert not set(tokenizer(kind).encode("a <s> b")) & own_controls(kind)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("text", [*TEXTS, *SPELLINGS])
def test_byte_level_and_identity_vocabularies_keep_every_text(kind: str, text: str) -> None:
  ours = tokenizer(kind)
  assert ours.losses == ()
  assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("text", [text for text in (*TEXTS, *SPELLINGS) if "\u2581" not in text])
def test_a_unigram_with_byte_fallback_keeps_all_but_its_mark_of_spaces(text: str) -> None:
  ours = tokenizer("unigram")
  assert ours.decode(ours.encode(text)) == text
  assert [loss.split(" (")[0] for loss in ours.losses] == ["the character U+2581"]


@pytest.mark.parametrize(
  ("kind", "text", "back"),
  [
    ("normalized", "Größe ﬁ\n  x", "größe fi\n  x"),
    ("metaspace", " a\n  b ", "a\n  b "),
    ("word_piece", "The  DOG\ndoes", "the dog does"),
    ("word_piece", "the \U0001f9ff dog", "the \ufffd dog"),
    ("whole_words", "The quick xylophone", "The quick \ufffd"),
    ("sentencepiece", "The  quick\tﬁ ", "The quick fi"),
  ],
)
def test_what_other_kinds_keep(kind: str, text: str, back: str) -> None:
  ours = tokenizer(kind)
  assert ours.decode(ours.encode(text)) == back


def test_what_a_tokenizer_loses_is_told_with_examples_when_it_is_loaded(
  tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
  told = {}
  for kind in KINDS:
    (tmp_path / kind).write_bytes(file(kind))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      Tokenizer.load(tmp_path / kind)
    told[kind] = caplog.text
  assert told["byte_level"] == told["sentencepiece_identity"] == ""
  assert "letter case ('aB' comes back as 'ab')" in told["normalized"]
  assert "runs of white space" in told["word_piece"] and "characters that it has no token for" in told["word_piece"]
  assert "white space at the ends" in told["sentencepiece"] and "letter case" not in told["sentencepiece"]


def test_unknown_characters_have_an_id_that_can_be_counted() -> None:
  ours = tokenizer("word_piece")
  assert ours.encode("the \U0001f9ff dog").count(ours.unknown_id) == 1
  assert ours.encode("[UNK]").count(ours.unknown_id) == 0
  assert tokenizer("byte_level").unknown_id is None


def test_an_encoder_that_drops_characters_without_a_sign_is_refused() -> None:
  trained = tokenizers.Tokenizer(models.BPE())
  trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  trained.decoder = decoders.ByteLevel()
  trained.train_from_iterator(["abc"] * 9, trainers.BpeTrainer(show_progress=False))
  with pytest.raises(TokenizerError, match=r"drops characters such as '!' without a sign.*byte"):
    Tokenizer(trained.to_str().encode())


@pytest.mark.parametrize("kind", KINDS)
def test_every_id_is_printed_and_reserved_ones_by_name(kind: str) -> None:
  ours = tokenizer(kind)
  assert all(isinstance(ours.decode([token]), str) for token in range(ours.vocab_size))
  dog = ours.encode("dog")
  assert ours.decode([ours.bos_id, *dog, ours.id("call"), *dog, ours.end_id]) == "<|bos|>dog<|call|>dog<|end|>"
  with pytest.raises(TokenizerError, match=f"{ours.vocab_size}; expected 0 to"):
    ours.decode([ours.vocab_size])


def test_a_foreign_control_token_that_a_model_writes_is_printed_as_its_owner_spells_it() -> None:
  theirs = tokenizers.Tokenizer.from_str(file("byte_level").decode())
  assert tokenizer("byte_level").decode([theirs.token_to_id("<|endoftext|>")]) == "<|endoftext|>"


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_pickles_encode_as_single_texts_do(kind: str) -> None:
  ours = tokenizer(kind)
  copy = pickle.loads(pickle.dumps(ours))
  assert copy.digest == ours.digest
  assert (
    copy.encode_batch(TEXTS)
    == copy.encode_batch(TEXTS, threads=1)
    == ours.encode_batch(TEXTS)
    == [ours.encode(text) for text in TEXTS]
  )
  assert ours.encode_batch([]) == []


def test_the_digest_covers_the_file_and_the_block() -> None:
  import xxhash

  model = file("byte_level")
  assert Tokenizer(model).digest == Tokenizer(model).digest != xxhash.xxh3_128_hexdigest(model)
  assert Tokenizer(model + b"\n").digest != Tokenizer(model).digest


def test_truncation_padding_dropout_and_template_of_a_file_are_off() -> None:
  chancy = byte_level(dropout=0.9)
  chancy.enable_truncation(4)
  chancy.enable_padding(length=9, pad_id=8)
  ours = Tokenizer(chancy.to_str().encode())
  ids = ours.encode("The quick brown fox " * 9)
  assert ids == tokenizer("byte_level").encode("The quick brown fox " * 9) and len(ids) > 9


def test_text_that_spells_a_control_token_of_either_vocabulary_is_counted() -> None:
  assert tokenizer("byte_level").count_reserved_spellings("a <|call|> <|endoftext|></s> <|none|> [CLS]") == 4
  assert tokenizer("sentencepiece").count_reserved_spellings("a <|call|> <s> <|endoftext|>") == 2


def test_tokens_that_their_owner_declares_ordinary_stay_in_the_vocabulary() -> None:
  theirs = byte_level()
  theirs.add_tokens(["    ", "<tool_call>"])
  ours = Tokenizer(theirs.to_str().encode())
  assert theirs.token_to_id("    ") in ours.encode("x    y")
  assert ours.decode(ours.encode("x    y<tool_call>")) == "x    y<tool_call>"
  assert ours.bos_id == theirs.get_vocab_size()


def test_a_damaged_or_unknown_file_is_refused_by_name() -> None:
  for content in (file("byte_level")[:1000], b"{}", b'{"model": {"type": "other", "vocab": {}}, "added_tokens": []}'):
    with pytest.raises(TokenizerError, match=r"given as bytes is damaged or no tokenizer\.json"):
      Tokenizer(content)


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
  with pytest.raises(TokenizerError, match=r"pip install 'maxagent\[hf\]'"):
    Tokenizer(file("byte_level"))


@pytest.mark.parametrize("kind", KINDS)
def test_lone_surrogates_are_refused_with_their_place(kind: str) -> None:
  with pytest.raises(TokenizerError, match=r"U\+D800 at character 2"):
    tokenizer(kind).encode_batch(["fine", "ab\ud800"])
