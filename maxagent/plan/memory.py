"""What one device must hold, and what it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from maxagent.config import Config
from maxagent.plan.chips import Topology
from maxagent.plan.compile import Compiled

_F32, _BF16 = 4, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes of one device. The compiler's, but for `activations`, which is counted and a part of what the compiler calls temp."""

  parameters: float
  optimizer: float
  batch: float
  padding: float  # arrays rounded up to tiles, and the few arguments that are none of the above
  activations: float  # kept from the forward for the backward pass
  temp: float  # everything else that it computes with: gradients, gathered weights, logits of a chunk
  code: float
  hbm: float  # what there is

  @property
  def needed(self) -> float:
    """All of it."""
    return self.parameters + self.optimizer + self.batch + self.padding + self.activations + self.temp + self.code

  @property
  def spare(self) -> float:
    """What is left; below 0 is what is missing."""
    return self.hbm - self.needed

  @property
  def fits(self) -> bool:
    """Whether the program can be loaded and run."""
    return self.spare >= 0

  def verdict(self) -> str:
    """One line."""
    size, share = size_text(abs(self.spare)), abs(self.spare) / self.hbm
    return (
      f"FITS with {size} ({share:.0%}) to spare" if self.fits else f"DOES NOT FIT by {size} ({share:.0%} of a device's HBM)"
    )


def measured(config: Config, topology: Topology, compiled: Compiled) -> Memory:
  """Of the compiled program. One that was too large to make has no code, and its padding is not known."""
  said = compiled.memory or {}
  held = compiled.params_bytes + compiled.optimizer_bytes + compiled.batch_bytes
  # The state is given back where it came from; what is given back beside it is small.
  given = said.get("argument", held) + said.get("output", 0) - said.get("alias", 0)
  kept = min(float(compiled.temp_bytes), activations(config, compiled.mesh))
  return Memory(
    parameters=compiled.params_bytes,
    optimizer=compiled.optimizer_bytes,
    batch=compiled.batch_bytes,
    padding=given - held,
    activations=kept,
    temp=compiled.temp_bytes - kept,
    code=said.get("generated_code", 0),
    hbm=topology.chip.hbm_bytes / topology.chip.devices,
  )


def local_tokens(config: Config, mesh: Mapping[str, int]) -> float:
  """Tokens of a microbatch that one device works on."""
  return config.tokens_per_step / config.training.microbatches / (mesh["data"] * mesh["fsdp"] * mesh["context"])


def activations(config: Config, mesh: Mapping[str, int]) -> float:
  """Bytes kept for the backward pass: the stream before each block, attention's result and its log-sum-exp, as `remat` says.

  Without recomputation every layer keeps its inner values too: queries, keys, values, both norms and three of the MLP's width.
  """
  model, tensor = config.model, mesh["tensor"]
  width = _BF16 if model.compute_dtype == "bfloat16" else _F32
  layers = len(model.layers) + model.mtp_depth
  blocks = layers if model.remat == "none" else len(model.prefix) + model.repeats + len(model.suffix) + model.mtp_depth
  heads = model.heads / tensor
  per_token = width * model.hidden_size * blocks + layers * heads * (width * model.head_size + _F32)
  if model.remat == "none":
    inner = (heads + 2 * model.kv_heads / tensor) * model.head_size + 3 * model.hidden_size + 3 * model.mlp_size / tensor
    per_token += layers * width * inner
  return local_tokens(config, mesh) * per_token


def least(config: Config, mesh: Mapping[str, int], parameters: int) -> float:
  """Bytes that no program can do without, by arithmetic: state, gradients, kept activations, one chunk of logits."""
  model, cut = config.model, mesh["fsdp"] * mesh["tensor"]
  moments = 2 if config.optimizer.name == "adamw" else 1
  rows = config.shapes[0][1] / config.training.microbatches / (mesh["data"] * mesh["fsdp"])
  chunk = min(config.objective.chunk_tokens, config.shapes[0][2] / mesh["context"])
  logits = rows * chunk * model.vocab_size / mesh["tensor"] * _F32
  return parameters * _F32 * (2 + moments) / cut + activations(config, mesh) + logits


def size_text(size_bytes: float) -> str:
  """A size as a person says it: 23.4 GiB, 812 MiB."""
  scale, unit = next(((2.0**p, name) for p, name in ((40, "TiB"), (30, "GiB")) if size_bytes >= 2**p), (2.0**20, "MiB"))
  value = size_bytes / scale
  return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
