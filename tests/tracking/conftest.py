"""A run's folder with invented numbers of a realistic shape, small enough to be drawn in a test."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maxagent.traces.schema import RESERVED, Segment, Trace
from maxagent.tracking.ledger import Ledger
from maxagent.tracking.rows import Document, Inspection, Row, Tally, Token

_STEPS = 600
_TOKENS_PER_STEP = 8192
_ROLES = {"web": 3.1, "plan": 0.12, "call": 0.05, "args": 0.04, "obs": 0.9, "back": 0.08, "reflect": 0.1, "answer": 0.03}


def _train(step: int, rng: random.Random) -> dict[str, float]:
  def loss(floor: float, speed: float) -> float:
    return floor + (7.6 - floor) * math.exp(-step / speed) * rng.uniform(0.95, 1.05) + floor * rng.gauss(0, 0.04)

  progress = step / _STEPS
  trace = 0.5 + rng.gauss(0, 0.03) / math.sqrt(step)
  metrics = {
    "train/loss": loss(1.4, 70),
    "train/loss/source/trace": loss(0.14, 60),
    "train/loss/source/web": loss(3.1, 90),
    "train/grad_norm": 0.35 + 4 * math.exp(-step / 25) + abs(rng.gauss(0, 0.06)),
    "train/learning_rate": 1e-3 * min(1, step / 60, 5 * (1 - progress) + 0.02),
    "train/tokens_per_second": 21000 * (1 - math.exp(-step / 5)) + rng.gauss(0, 700),
    "mixture/asked/trace": 0.5,
    "mixture/asked/web": 0.5,
    "mixture/realised/trace": trace,
    "mixture/realised/web": 1 - trace,
    "mixture/fill": 0.998,
  }
  return metrics | {f"train/loss/role/{role}": loss(floor, 60) for role, floor in _ROLES.items()}


def _evaluation(step: int) -> dict[str, float]:
  metrics = {"eval/loss/source/web": 3.15 + 4 * math.exp(-step / 90), "eval/loss/source/trace": 0.15 + 7 * math.exp(-step / 60)}
  metrics |= {f"eval/loss/role/{role}": floor + 6 * math.exp(-step / 65) for role, floor in _ROLES.items()}
  for kind, ceiling, delay in (("success", 0.965, 200), ("recovery", 0.87, 290)):
    rates = {}
    for family, shift in (("files", 60), ("kv", 0)):
      rate = rates[family] = ceiling / (1 + math.exp(-(step - delay - shift) / 45))
      half = 1.96 * math.sqrt(max(rate * (1 - rate), 0.002) / 200)
      metrics |= {
        f"eval/{family}/{kind}": rate,
        f"eval/{family}/{kind}_low": max(0, rate - half),
        f"eval/{family}/{kind}_high": min(1, rate + half),
        f"eval/{family}/repeated_error": 0.4 * math.exp(-step / 150),
        f"eval/{family}/repeated_error_low": 0.3 * math.exp(-step / 150),
        f"eval/{family}/repeated_error_high": 0.5 * math.exp(-step / 150) + 0.01,
        f"eval/{family}/invalid_call": 0.002,
        f"eval/{family}/invalid_call_low": 0.001,
        f"eval/{family}/invalid_call_high": 0.007,
        f"eval/{family}/turns": 4.25,
        f"eval/{family}/turn_limit": 3.0,
      }
    mean = sum(rates.values()) / 2
    metrics |= {f"eval/{kind}": mean, f"eval/{kind}_low": mean - 0.02, f"eval/{kind}_high": min(1, mean + 0.015)}
  return metrics | {"eval/repeated_error": 0.4 * math.exp(-step / 150)}


def _records() -> list[dict[str, Any]]:
  rng = random.Random(0)
  records: list[dict[str, Any]] = []
  for step in range(1, _STEPS + 1):
    metrics = _train(step, rng) | (_evaluation(step) if step % 60 == 0 else {})
    records.append({"step": step, "tokens": step * _TOKENS_PER_STEP, "seconds": round(0.4 * step, 3)} | metrics)
  return records


def _make_trace(seed: int, *, recovery: bool, success: bool) -> Trace:
  """An episode of the key-value kind: three calls, one of them forced and wrong when `recovery`."""
  word = ("tin", "oak", "jade", "fern", "dune")[seed % 5]
  tools = [
    {"name": f"{verb}_{word}", "does": does, "args": ["key"]} for verb, does in (("open", "open it"), ("pull", "read a key"))
  ]
  segments = [
    Segment(role="tools", text=json.dumps(tools)),
    Segment(role="goal", text=f"What is the value of the alias {word}?"),
    Segment(role="plan", text="1 open the store\n2 resolve the alias\n3 read the key"),
  ]
  if recovery:
    kind = ("wrong_tool", "missing_precondition", "wrong_argument")[seed % 3]
    segments += [
      Segment(role="call", text=f"pull_{word}", args='{"key": "mint"}', step=1, status="err", err_kind=kind),
      Segment(role="obs", text="the store is closed", step=1, status="err", err_kind="closed"),
      Segment(role="back", text=""),
      Segment(role="reflect", text=f"open the store first with open_{word}"),
    ]
  segments += [
    Segment(role="call", text=f"open_{word}", args="{}", step=2, status="ok", fixes_step=1 if recovery else None),
    Segment(role="obs", text="open", step=2, status="ok"),
    Segment(role="call", text=f"pull_{word}", args=f'{{"key": "{word}"}}', step=3, status="ok" if success else "err"),
    Segment(role="obs", text="maple" if success else f"no key {word}", step=3, status="ok" if success else "err"),
    Segment(role="answer", text="maple" if success else "birch", status="ok" if success else "err"),
  ]
  outcome = "ok" if success else "fail"
  return Trace(id=f"kv-{seed}", family="kv", segments=tuple(segments), goal=segments[1].text, env_seed=seed, outcome=outcome)


def _write_episodes(path: Path, traces: list[tuple[Trace, str, bool]]) -> None:
  """episodes.jsonl as an evaluation writes it."""
  lines = [{"trace": json.loads(t.to_json()), "kind": kind, "success": success, "step": _STEPS} for t, kind, success in traces]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


_CONFIG = {
  "name": "quickstart",
  "seed": 0,
  "model": {
    "vocab_size": 2048,
    "hidden_size": 128,
    "pattern": ["local", "local", "global"],
    "prefix": [],
    "global_rope": False,
  },
  "mesh": {"data": None, "fsdp": 2, "tensor": 2, "context": 2},
  "data": {
    "tokenizer": "runs/quickstart/tokenizer.model",
    "sources": [{"name": "trace", "path": "data/trace", "share": 1.0}, {"name": "web", "path": "data/web", "share": 1.0}],
    "sequence_tokens": 512,
  },
  "objective": {"phase": "pretrain", "overrides": [["call.err", 0.0]], "z_loss": 1e-4},
  "optimizer": {"name": "adamw", "learning_rate": 1e-3, "clip_norm": None},
  "training": {"steps": _STEPS, "microbatches": 1},
}


@pytest.fixture
def make_trace() -> Callable[..., Trace]:
  """The maker of one episode's trace, by seed, recovery and success."""
  return _make_trace


@pytest.fixture
def write_episodes() -> Callable[[Path, list[tuple[Trace, str, bool]]], None]:
  """The writer of an episodes.jsonl."""
  return _write_episodes


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
  """A finished run: config, metrics, ledger, outer phases, episodes."""
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in _records()))
  (tmp_path / "config.json").write_text(json.dumps(_CONFIG))
  seconds = {"compile": 31.0, "data": 4.2, "step": 214.0, "eval": 58.0, "checkpoint": 6.1, "restore": 0.0, "report": 1.4}
  ledger = Ledger.from_dict({"wall_seconds": sum(seconds.values()) + 7.5, "phases": seconds}, clock=lambda: 0.0)
  ledger.save(tmp_path)
  outer = [("install", 71.0), ("tokenizer", 9.4), ("shards", 21.7)]
  (tmp_path / "phases.jsonl").write_text("".join(json.dumps({"phase": n, "seconds": s}) + "\n" for n, s in outer))
  episodes = []
  for seed in range(40):
    recovery, success = seed % 2 == 0, seed % 7 != 3
    episodes.append((_make_trace(seed, recovery=recovery, success=success), "recovery" if recovery else "clean", success))
  _write_episodes(tmp_path / "episodes.jsonl", episodes)
  return tmp_path


_PREFIX_FIRST = (
  "<bos> <fim_pre>/marker+added <goal>/goal g/goal <end>/goal <call>/call <fim_suf>/marker+added <args>/args k/args <end>/args "
  "<fim_mid>/marker+added get/call+hole <eos>/marker"
)
_SUFFIX_FIRST = (
  "<bos> <fim_pre>/marker+added <fim_suf>/marker+added <args>/args k/args <end>/args <fim_mid>/marker+added <goal>/goal g/goal "
  "<end>/goal <call>/call get/call+hole <eos>/marker"
)
_OFFERED = " ".join(
  f"<call>/marker+added {name}/marker+added <args>/marker+added k/marker+added <end>/marker+added" for name in ("put", "get")
)
_DECISION = (
  f"<bos> <goal>/goal g/goal <end>/goal <choose>/marker+added {_OFFERED} <end>/marker+added <call>/call+decision "
  "get/call+decision <args>/args+decision k/args+decision <end>/args+decision <eos>/marker"
)
_RECOVERY = (
  "<bos> <tools>/tools*0.1 t/tools*0.1 <end>/tools*0.1 <call>/call! a/call! <args>/args! {}/args! <end>/args! <obs>/obs! "
  "<err>/obs! no/obs! <end>/obs! <back>/back <end>/back <reflect>/reflect why/reflect+muted*0 <end>/reflect <answer>/answer "
  "b/answer <end>/answer <ok>/marker <eos>/marker"
)


def _tokens(text: str) -> tuple[Token, ...]:
  """The tokens of a text of such words; ordinary pieces get ids by what they say."""
  made = []
  for position, word in enumerate(text.split()):
    rest, _, weight = word.partition("*")
    failed = rest.endswith("!")
    rest, *flags = rest.removesuffix("!").split("+")
    piece, _, role = rest.partition("/")
    name = piece[1:-1] if piece.startswith("<") and piece[1:-1] in RESERVED else None
    value = 0.0 if "added" in flags or not role else float(weight or 1)
    made.append(
      Token(
        id=RESERVED.index(name) if name else 100 + sum(map(ord, piece)), piece=f"<|{name}|>" if name else piece, reserved=name,
        role=role or None, status="err" if failed else "na", flags=tuple(flags), weight=value, position=position,
      )
    )  # fmt: skip
  return tuple(made)


def _document(text: str, *, source: str = "trace", segment: int = 1) -> Document:
  """A document of such words."""
  return Document(source=source, segment=segment, tokens=_tokens(text))


def _inspection(*documents: Document) -> Inspection:
  """What would be shown of one row of these documents."""
  return Inspection(
    title="smoke", subtitle="The batch of step 3", facts=(("Tokens", "48", "in 1 row, 75.0% full"),),
    rows=(Row(title="Row 0", documents=documents, padding=16),),
    tallies=(_tally("trace", "call", 30, 20, 20.0), _tally("trace", "tools", 10, 10, 1.0), _tally("web", "web", 8, 8, 8.0)),
    shares=("Asked of content tokens: trace 50.0%, web 50.0%.",), counts={"near_duplicates": 1200}, rejects=(("empty", 3),),
  )  # fmt: skip


def _tally(source: str, role: str, targets: int, supervised: int | None = None, weight: float | None = None) -> Tally:
  """A tally, written short."""
  return Tally(source=source, role=role, targets=targets, supervised=supervised, weight=weight)


@pytest.fixture
def told() -> dict[str, str]:
  """Documents as `make_document` takes them: a hole in both orders of telling, a decision, a failed step and its recovery."""
  return {"prefix first": _PREFIX_FIRST, "suffix first": _SUFFIX_FIRST, "decision": _DECISION, "recovery": _RECOVERY}


@pytest.fixture
def make_document() -> Callable[..., Document]:
  """Makes a document of words: `<call>/call` is a marker, `get/call+hole` has a flag, `x/obs!` failed, `t/goal*0.1` weighs."""
  return _document


@pytest.fixture
def make_inspection() -> Callable[..., Inspection]:
  """Makes what is shown of one row of documents."""
  return _inspection
