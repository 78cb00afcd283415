"""The frozen, hashable, self-checking description of a run. `None` means off."""

from __future__ import annotations

import dataclasses
import difflib
import math

from maxagent.errors import ConfigError
from maxagent.traces.schema import Role, Status


def _require(condition: bool, field: str, value: object, expected: str) -> None:
  if not condition:
    raise ConfigError(f"{field} is {value!r}; expected {expected}.")


def _require_local(field: str, path: str | None) -> None:
  _require("://" not in (path or ""), field, path, "a local path: mount the bucket (Cloud Storage FUSE) and name it there")


def _require_readable(field: str, path: str) -> None:
  local_or_bucket = path.startswith("gs://") or "://" not in path
  _require(local_or_bucket, field, path, "a local path or one that begins with gs://")


def _require_positive(owner: str, part: object, *names: str) -> None:
  for name in names:
    value = getattr(part, name)
    _require(value > 0, f"{owner}.{name}", value, "a number above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A decoder: prefix + repeats x pattern + suffix layers, each "local" (sliding window) or "global"."""

  vocab_size: int = 2048  # the tokenizer's, or the next multiple of 128, which meshes can cut
  hidden_size: int = 128
  mlp_size: int = 384  # SwiGLU inner width
  heads: int = 4
  kv_heads: int = 2
  head_size: int = 32
  prefix: tuple[str, ...] = ()
  pattern: tuple[str, ...] = ("local", "local", "local", "global")
  repeats: int = 1
  suffix: tuple[str, ...] = ()
  window_tokens: int = 256  # a local layer sees this many tokens, itself included
  rope_theta: float = 10_000.0
  global_rope: bool = False  # NoPE in global layers extrapolates in length; True only to match other models
  qk_norm: bool = True  # stops attention-logit growth (arXiv 2309.14322)
  tied_embeddings: bool = True
  norm_epsilon: float = 1e-6
  init_scale: float = 0.02  # standard deviation of the embedding; matrices use 1/sqrt(fan in)
  copy_init: bool = False  # attention begins as a copy of what it attends to; small tied models find induction far sooner
  compute_dtype: str = "bfloat16"  # or float32; parameters are always float32
  remat: str = "block"  # none | block: recompute a pattern block in the backward pass
  attention: str = "xla"  # xla: everywhere; pallas: the TPU kernel, which other platforms interpret, slowly
  attention_block_tokens: int = 256  # tile edge of xla; the kernel has its own
  mtp_depth: int = 0  # tokens after the next one that training predicts too; it hurts below 0.6B parameters (arXiv 2404.19737)

  def __post_init__(self) -> None:
    _require_positive(
      "model", self, "vocab_size", "hidden_size", "mlp_size", "heads", "kv_heads", "head_size", "window_tokens",
      "rope_theta", "norm_epsilon", "init_scale", "attention_block_tokens",
    )  # fmt: skip
    _require(self.heads % self.kv_heads == 0, "model.kv_heads", self.kv_heads, f"a divisor of model.heads = {self.heads}")
    _require(self.head_size % 2 == 0, "model.head_size", self.head_size, "an even number, as RoPE turns pairs")
    _require(self.repeats >= 0, "model.repeats", self.repeats, "0 or more")
    _require(self.mtp_depth >= 0, "model.mtp_depth", self.mtp_depth, "0 (off) or more")
    for kind in self.layers:
      _require(kind in ("local", "global"), "model layer kind", kind, "'local' or 'global'")
    _require(len(self.layers) > 0, "model layers", self.layers, "at least one layer")
    _require(self.compute_dtype in ("bfloat16", "float32"), "model.compute_dtype", self.compute_dtype, "bfloat16 or float32")
    _require(self.remat in ("none", "block"), "model.remat", self.remat, "none or block")

  @property
  def layers(self) -> tuple[str, ...]:
    """The kind of every layer, in order."""
    return self.prefix + self.pattern * self.repeats + self.suffix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
  """Devices along each named axis; `data=None` takes what the other axes leave."""

  data: int | None = None
  fsdp: int = 1
  expert: int = 1
  context: int = 1
  tensor: int = 1

  def __post_init__(self) -> None:
    _require_positive("mesh", self, "fsdp", "expert", "context", "tensor")
    _require(
      self.expert == 1, "mesh.expert", self.expert, "1: the axis is kept for mixtures of experts, and no layer uses it yet"
    )
    _require(self.data is None or self.data > 0, "mesh.data", self.data, "None (the rest) or a number above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """One stream of documents. `share` is its part of content tokens, relative to the sum over sources."""

  name: str
  path: str  # a folder written by `maxagent data build`, local or gs://
  share: float = 1.0
  max_epochs: float | None = None  # passes over it, then the other sources take its rows; 4 cost little (arXiv 2305.16264)

  def __post_init__(self) -> None:
    _require_readable(f"data.sources.{self.name}.path", self.path)
    _require(bool(self.name) and "." not in self.name, "data.sources name", self.name, "a name without a dot")
    _require(self.share > 0, f"data.sources.{self.name}.share", self.share, "a number above 0; remove a source to turn it off")
    _require(
      self.max_epochs is None or self.max_epochs > 0, f"data.sources.{self.name}.max_epochs", self.max_epochs, "None or above 0"
    )


HOLES = ("arguments", "call", "call_obs_call", "plan", "tool_name")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Formats:
  """How documents are rewritten when rows are made, as shares of documents; the rest stays left to right.

  Half plain: fill-in-the-middle costs nothing up to high rates (arXiv 2207.14255), and an agent acts left to right.
  """

  infill: float = 0.3  # of traces: a hole cut at the trace's structure
  fim: float = 0.1  # of traces and of text: a random span
  decision: float = 0.1  # of traces: the true next call among others
  fake: float = 0.0  # of traces: a later call, taken back, before the true one; 0, as executed errors teach it too
  suffix_first: float = 0.5  # of infill and fim: the order SPM, else PSM
  # (kind, share) of the holes of infill; kinds that a trace does not offer leave their share to the others
  holes: tuple[tuple[str, float], ...] = (
    ("arguments", 0.2), ("call", 0.3), ("call_obs_call", 0.1), ("plan", 0.2), ("tool_name", 0.2),
  )  # fmt: skip
  distractors: int = 3  # calls beside the true one in a decision

  def __post_init__(self) -> None:
    for name in ("infill", "fim", "decision", "fake", "suffix_first"):
      value = getattr(self, name)
      _require(0 <= value <= 1, f"data.formats.{name}", value, "a share of documents, 0 to 1")
    _require(self.rewritten <= 1 + 1e-9, "data.formats.infill + fim + decision + fake", self.rewritten, "at most 1")
    _require_positive("data.formats", self, "distractors")
    for kind, share in self.holes:
      _require(kind in HOLES, "data.formats.holes kind", kind, " or ".join(HOLES))
      _require(share >= 0, f"data.formats.holes {kind}", share, "0 or more")

  @property
  def rewritten(self) -> float:
    """Share of the traces that do not stay as they are."""
    return self.infill + self.fim + self.decision + self.fake


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """What the run reads. Sources are kept sorted by name, so that their ids do not depend on how they were written."""

  tokenizer: str = ""
  sources: tuple[Source, ...] = ()
  # From how many content tokens on which shares hold, in place of those of the sources, such as
  # ((0, (("trace", 0.1), ("web", 0.9))), (2e9, (("trace", 0.5), ("web", 0.5)))); a source that a phase leaves out rests in it.
  schedule: tuple[tuple[float, tuple[tuple[str, float], ...]], ...] = ()
  # What shares are of: content | supervised, the tokens that weigh something in the loss. With content, an ablation of weights
  # reads the same data.
  shares_of: str = "content"
  sequence_tokens: int = 512  # length of a row
  global_batch: int = 16  # rows per step
  # From how many content tokens on rows are how long, in place of sequence_tokens, such as ((2e9, 32_768), (3e9, 1_048_576)).
  # A step keeps its tokens, so it has fewer rows.
  lengths: tuple[tuple[float, int], ...] = ()
  seed: int = 0  # order of documents
  on_damage: str = "raise"  # or quarantine: skip and count damaged records
  packing_window: int = 64  # traces looked at together when rows are filled, and at least a quarter as many rows' worth of them
  formats: Formats = Formats()
  prefetch_batches: int = 2

  def __post_init__(self) -> None:
    _require_readable("data.tokenizer", self.tokenizer)
    _require_positive("data", self, "sequence_tokens", "global_batch", "packing_window", "prefetch_batches")
    _require(self.on_damage in ("raise", "quarantine"), "data.on_damage", self.on_damage, "raise or quarantine")
    _require(self.shares_of in ("content", "supervised"), "data.shares_of", self.shares_of, "content or supervised")
    self._check_lengths()
    names = [s.name for s in self.sources]
    _require(len(set(names)) == len(names), "data.sources", names, "names that differ")
    object.__setattr__(self, "sources", tuple(sorted(self.sources, key=lambda s: s.name)))
    starts = [start for start, _ in self.schedule]
    growing = starts == sorted(set(starts)) and starts[:1] in ([], [0])
    _require(growing, "data.schedule", starts, "phases that begin at growing numbers of tokens, the first at 0")
    for start, shares in self.schedule:
      for name, share in shares:
        _require(name in names, f"data.schedule at {start:g}", name, f"a source, one of {', '.join(names)}")
        _require(share >= 0, f"data.schedule at {start:g} {name}", share, "0 or more")
      total = sum(share for _, share in shares)
      _require(total > 0, f"data.schedule at {start:g}", shares, "a share above 0")

  def _check_lengths(self) -> None:
    starts = [0.0, *(start for start, _ in self.lengths)]
    growing = starts == sorted(set(starts))
    _require(growing, "data.lengths", starts[1:], "phases that begin at growing numbers of tokens above 0")
    before = self.sequence_tokens
    for _, length in self.lengths:
      whole = length > before and length % before == 0 and self.global_batch * self.sequence_tokens % length == 0
      tokens = f"{self.global_batch} x {self.sequence_tokens} tokens of a step (data.global_batch x data.sequence_tokens)"
      _require(whole, "data.lengths", length, f"a multiple of {before}, the length before it, that divides the {tokens}")
      before = length

  @property
  def shapes(self) -> tuple[tuple[float, int, int], ...]:
    """(first content token, rows of a step, tokens of a row) of every phase of `lengths`, the first of `sequence_tokens`."""
    tokens = self.global_batch * self.sequence_tokens
    return tuple((start, tokens // length, length) for start, length in ((0.0, self.sequence_tokens), *self.lengths))

  @property
  def phases(self) -> tuple[tuple[float, tuple[float, ...]], ...]:
    """(first content token, share of each source in order, summing to 1) of every phase of the mixture."""
    constant = ((0.0, tuple((source.name, source.share) for source in self.sources)),)
    phases = []
    for start, shares in self.schedule or constant:
      given, total = dict(shares), sum(share for _, share in shares)
      phases.append((start, tuple(given.get(source.name, 0.0) / total for source in self.sources)))
    return tuple(phases)


PHASES = ("pretrain", "midtrain")
# What a weight can be set for: a role, or a role of one status. Padding never counts.
WEIGHT_KEYS = tuple(
  key
  for role in Role
  if role is not Role.PAD
  for key in (role.name.lower(), *(f"{role.name}.{status.name}".lower() for status in Status))
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What a token's loss counts. The tables behind the phases are in `objectives.weights`."""

  phase: str = "pretrain"  # pretrain | midtrain
  # (key, weight) pairs over the phase's table; a key is a role, or role.status such as "call.err"
  overrides: tuple[tuple[str, float], ...] = ()
  # Weights that change: (key, ((step, weight), ...)), linear between, such as (("obs", ((0, 1.0), (10_000, 0.3))),)
  schedule: tuple[tuple[str, tuple[tuple[int, float], ...]], ...] = ()
  z_loss: float = 1e-4  # PaLM, section 5
  mtp_weight: float = 0.3  # of the mean loss over model.mtp_depth, beside the loss itself (DeepSeek-V3, section 4.2)
  cross_entropy: str = "xla"  # xla: everywhere; pallas: the TPU kernel, which other platforms interpret, slowly
  chunk_tokens: int = 256  # of xla: positions of each row whose logits exist at once

  def __post_init__(self) -> None:
    _require(self.phase in PHASES, "objective.phase", self.phase, " or ".join(PHASES))
    _require(self.cross_entropy in ("xla", "pallas"), "objective.cross_entropy", self.cross_entropy, "xla or pallas")
    _require_weight("objective.z_loss", self.z_loss)
    _require_positive("objective", self, "chunk_tokens")
    off = "a number above 0; model.mtp_depth = 0 turns it off"
    _require(0 < self.mtp_weight < math.inf, "objective.mtp_weight", self.mtp_weight, off)
    for name in ("overrides", "schedule"):
      _require_weight_keys(f"objective.{name}", [key for key, _ in getattr(self, name)])
    for key, weight in self.overrides:
      _require_weight(f"objective.overrides {key}", weight)
    for key, points in self.schedule:
      steps = [step for step, _ in points]
      _require(bool(points) and steps == sorted(set(steps)), f"objective.schedule {key}", steps, "growing steps, at least one")
      for _, weight in points:
        _require_weight(f"objective.schedule {key}", weight)


def _require_weight(field: str, weight: float) -> None:
  _require(math.isfinite(weight) and weight >= 0, field, weight, "a weight of 0 or more")


def _require_weight_keys(field: str, keys: list[str]) -> None:
  for key in keys:
    if key not in WEIGHT_KEYS:
      near = difflib.get_close_matches(key, WEIGHT_KEYS, 1)
      cure = f"Did you mean {near[0]!r}?" if near else f"Roles are {', '.join(k for k in WEIGHT_KEYS if '.' not in k)}."
      raise ConfigError(f"{field} names {key!r}; expected a role or role.status, such as 'obs' or 'call.err'. {cure}")
  _require(len(set(keys)) == len(keys), f"{field} keys", keys, "keys that differ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """AdamW everywhere, or Muon for the matrices between embedding and head with AdamW for the rest."""

  name: str = "adamw"  # adamw | muon
  learning_rate: float = 1e-3  # peak, of AdamW
  muon_learning_rate: float = 0.02  # peak, of Muon's matrices
  b1: float = 0.9
  b2: float = 0.95
  epsilon: float = 1e-8
  weight_decay: float = 0.1  # matrices only, never norms
  clip_norm: float | None = 1.0  # global gradient norm

  def __post_init__(self) -> None:
    _require(self.name in ("adamw", "muon"), "optimizer.name", self.name, "adamw or muon")
    _require_positive("optimizer", self, "learning_rate", "muon_learning_rate", "epsilon")
    for name in ("b1", "b2"):
      value = getattr(self, name)
      _require(0 <= value < 1, f"optimizer.{name}", value, "0 to below 1")
    _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
    _require(self.clip_norm is None or self.clip_norm > 0, "optimizer.clip_norm", self.clip_norm, "None (off) or above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """Warm-up, stable, decay (WSD): a factor on every peak learning rate, by step."""

  warmup_steps: int = 100
  decay_steps: int = 0  # the last steps of the run, linear to final_factor
  final_factor: float = 0.0

  def __post_init__(self) -> None:
    for name in ("warmup_steps", "decay_steps"):
      value = getattr(self, name)
      _require(value >= 0, f"schedule.{name}", value, "0 or more steps")
    _require(0 <= self.final_factor <= 1, "schedule.final_factor", self.final_factor, "0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """The loop."""

  steps: int = 1000
  microbatches: int = 1  # gradient accumulation: global_batch is cut into this many parts
  # A run's workdir, or one step in its checkpoints folder: weights only, for new data, a new optimizer or a decay branch.
  init_from: str | None = None
  hang_seconds: float | None = None  # a process silent for so long ends the run for a retry (exit 75); None: nobody looks

  def __post_init__(self) -> None:
    _require_local("training.init_from", self.init_from)
    _require_positive("training", self, "steps", "microbatches")
    hang = self.hang_seconds
    _require(hang is None or hang > 0, "training.hang_seconds", hang, "None (off) or above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """When state is saved and how much of it is kept."""

  every_steps: int = 200
  keep: int = 3

  def __post_init__(self) -> None:
    _require_positive("checkpoint", self, "every_steps", "keep")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What is measured while it trains."""

  every_steps: int = 500
  batches: int = 8  # held-out batches per source
  families: tuple[str, ...] = ()  # environments played; empty: none
  episodes: int = 200  # per family and kind (clean, recovery); an n below 200 makes wide intervals
  turn_limit: int = 12  # actions per episode
  context_tokens: int = 512  # longest transcript; an episode that outgrows it fails and is counted
  slots: int = 64  # episodes decoded together
  difficulty: int = 1

  def __post_init__(self) -> None:
    _require_positive(
      "evaluation", self, "every_steps", "batches", "episodes", "turn_limit", "context_tokens", "slots", "difficulty"
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """One run."""

  name: str = "run"
  seed: int = 0  # initialisation
  model: Model = Model()
  mesh: Mesh = Mesh()
  data: Data = Data()
  objective: Objective = Objective()
  optimizer: Optimizer = Optimizer()
  schedule: Schedule = Schedule()
  training: Training = Training()
  checkpoint: Checkpoint = Checkpoint()
  evaluation: Evaluation = Evaluation()

  def __post_init__(self) -> None:
    parts = self.training.microbatches
    for _, rows, length in self.shapes:
      _require(rows % parts == 0, "training.microbatches", parts, f"a divisor of the {rows} rows of {length} tokens of a step")
    depth, length = self.model.mtp_depth, self.data.sequence_tokens
    _require(depth < length, "model.mtp_depth", depth, f"less than data.sequence_tokens = {length}")
    total = self.schedule.warmup_steps + self.schedule.decay_steps
    _require(
      total <= self.training.steps,
      "schedule.warmup_steps + decay_steps",
      total,
      f"at most training.steps = {self.training.steps}",
    )

  @property
  def shapes(self) -> tuple[tuple[float, int, int], ...]:
    """Those of `data.shapes` that the run can reach before its last step."""
    most = self.training.steps * self.tokens_per_step
    return tuple(shape for shape in self.data.shapes if shape[0] < most)

  @property
  def tokens_per_step(self) -> int:
    """Row tokens read per step, padding included."""
    return self.data.global_batch * self.data.sequence_tokens
