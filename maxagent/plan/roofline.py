"""How fast a step can be at best: what each part of a chip would need for it at its published rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from maxagent.config import Config
from maxagent.plan.chips import Topology
from maxagent.plan.collectives import Traffic
from maxagent.plan.flops import Flops
from maxagent.plan.memory import local_tokens

ASSUMPTIONS = (
  "Every rate is the published peak, which no program reaches: the step time is a bound, not a forecast.",
  "The bound takes compute, HBM, ICI and DCN as fully overlapped; end to end, one after another, is the other extreme.",
  "Compute: the compiled program's matrix products, loops multiplied, and attention counted from the config.",
  "Attention is counted as if every row were one document; packed rows need less.",
  "HBM: counted from the config, every product's operands read and its result written once.",
  "ICI: rings along the torus dimensions of each group, both ways where the dimension closes, no latency, no contention.",
  "DCN: slices work alone first, then a host's network is shared by its chips.",
)
SANE_MFU = (0.3, 0.4, 0.5)
_F32, _BF16 = 4, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
  """Seconds of one step, by what they are spent on."""

  compute: float
  hbm: float
  ici: float
  dcn: float
  model_seconds: float  # the model's own operations at peak, on all chips

  @property
  def terms(self) -> dict[str, float]:
    """By name."""
    return {"compute": self.compute, "HBM": self.hbm, "ICI": self.ici, "DCN": self.dcn}

  @property
  def bound(self) -> str:
    """What the step waits for."""
    return max(self.terms, key=lambda name: self.terms[name])

  @property
  def best_seconds(self) -> float:
    """Everything overlapped."""
    return max(self.terms.values())

  @property
  def worst_seconds(self) -> float:
    """Nothing overlapped."""
    return sum(self.terms.values())

  @property
  def best_mfu(self) -> float:
    """The model's share of the peak at `best_seconds`: no run can be above it."""
    return self.model_seconds / self.best_seconds


def roofline(
  config: Config, topology: Topology, mesh: Mapping[str, int], *, flops: Flops, products: float | None, sent: Sequence[Traffic]
) -> Roofline:
  """`products` are the compiled program's, of one device; None counts them from the config."""
  chip, tokens = topology.chip, config.tokens_per_step
  peak = chip.peak_flops / chip.devices
  if products is None:
    compute = (flops.hardware * tokens + flops.optimizer) / topology.devices
  else:
    compute = products + (flops.kernels * tokens / topology.devices if config.model.attention == "pallas" else 0.0)
  return Roofline(
    compute=compute / peak,
    hbm=hbm_bytes(config, mesh) * chip.devices / chip.hbm_bandwidth,
    ici=sum(one.seconds for one in sent if one.network == "ICI"),
    dcn=sum(one.seconds for one in sent if one.network == "DCN"),
    model_seconds=flops.model * tokens / topology.devices / peak,
  )


def hbm_bytes(config: Config, mesh: Mapping[str, int]) -> float:
  """Bytes that one device moves to and from its memory in a step, counted."""
  model, tensor, parts = config.model, mesh["tensor"], config.training.microbatches
  heads, kv_heads = model.heads * model.head_size, model.kv_heads * model.head_size
  layers = len(model.layers) + model.mtp_depth
  matrices = layers * model.hidden_size * (2 * heads + 2 * kv_heads + 3 * model.mlp_size)
  ends = model.hidden_size * model.vocab_size * (1 if model.tied_embeddings else 2)
  moments = 2 if config.optimizer.name == "adamw" else 1
  passes = 3 + (model.remat == "block")  # forward; backward, which has two products for each; once more where recomputed
  state = 2 * (1 + moments + parts) * _F32 * (matrices + ends) / (mesh["fsdp"] * tensor)
  weights = parts * (passes + 1) * _BF16 * (matrices + ends) / tensor
  layer = 4 * model.hidden_size + (2 * (heads + 2 * kv_heads) + 2 * heads + 6 * model.mlp_size) / tensor
  logits = 4 * _F32 * model.vocab_size * (1 + model.mtp_depth) / tensor
  tokens = local_tokens(config, mesh) * parts
  return state + weights + tokens * (passes * _BF16 * layers * layer + logits)
