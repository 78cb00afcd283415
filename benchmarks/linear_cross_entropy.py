"""The linear cross-entropy kernels beside the public one and plain XLA, by what libtpu compiles them to; nothing is run.

    python benchmarks/linear_cross_entropy.py --json     # ours, tokamax's and the chunked XLA form, in one run
    python benchmarks/linear_cross_entropy.py --choose   # ranks the blocks that kernels/.../cross_entropy/plan.py commits
    python benchmarks/linear_cross_entropy.py --errors   # errors against float64 of bfloat16 inputs, interpreted on the CPU

What a SCORE is, and is not, stands in `kernels.py`, whose libtpu and flags this uses: max(bundles, products / peak), here of
512 tokens x 512 words over the whole width of the model. tokamax takes neither weights nor z-loss: it is given neither.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import unittest.mock
from collections.abc import Callable
from typing import Any

from kernels import DUMP, PEAK, TILE, TOPOLOGIES, compiled, kernels_in_dump  # first: it sets flags before jax is imported

# isort: split

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from maxagent.objectives.cross_entropy import token_losses
from maxagent.parallel import Layout
from maxagent_kernels.cross_entropy import BACKWARD, FORWARD, Blocks, linear_scores
from maxagent_kernels.cross_entropy.backward import scratch as backward_scratch
from maxagent_kernels.cross_entropy.forward import scratch as forward_scratch
from maxagent_kernels.cross_entropy.plan import make_plan

LIBRARIES = ("ours", "tokamax", "xla")
# tokamax's own choice for each generation: tokens, width, words.
TOKAMAX = {"v5e": (1024, 512, 512), "v5p": (1024, 512, 512), "v6e": (1024, 512, 2048)}
PRODUCTS = {"forward": 1, "backward": 3}
DOT_GENERAL = jax.lax.dot_general
Loss = Callable[[Any, Any, Any, Any], Any]  # of hidden, head, targets, weights


def gradients(losses: Callable[[Any, Any, Any], tuple[Any, Any]]) -> Loss:
  """The weighted loss with z-loss, and its gradients."""

  def loss(hidden: Any, head: Any, targets: Any, weights: Any) -> Any:
    each, log_z = losses(hidden, head, targets)
    return jnp.sum(weights * (each + 1e-4 * log_z**2))

  return jax.value_and_grad(loss, (0, 1))


def ours(blocks: tuple[Blocks, Blocks] = (FORWARD, BACKWARD), interpret: bool = False) -> Loss:
  """By the kernels."""

  def losses(hidden: Any, head: Any, targets: Any) -> tuple[Any, Any]:
    scores = linear_scores(hidden, head, targets, blocks=blocks, interpret=interpret)
    return scores.log_z - scores.target_logit, scores.log_z

  return gradients(losses)


def xla() -> Loss:
  """By the chunked form, one row of all tokens, 256 at a time."""

  def losses(hidden: Any, head: Any, targets: Any) -> tuple[Any, Any]:
    found = token_losses(hidden[None], head, targets[None], chunk_tokens=256, layout=Layout())
    return found[0][0], found[1][0]

  return gradients(losses)


def tokamax(sizes: tuple[int, int, int]) -> Loss:
  """By tokamax's kernels for Mosaic; the head is rounded to bfloat16 before, and all weights are 1."""
  from tokamax._src.ops.linear_softmax_cross_entropy_loss import pallas_mosaic_tpu_kernel as library

  cut = dict(zip(("b_block_size", "h_block_size", "v_block_size"), sizes, strict=True))

  def run(hidden: Any, head: Any, targets: Any, weights: Any) -> Any:
    del weights
    words = head.astype(hidden.dtype)
    loss, log_z = library.linear_softmax_cross_entropy_loss_fwd_pallas_mosaic_tpu(hidden, targets, words, **cut)
    found = library.linear_softmax_cross_entropy_loss_bwd_pallas_mosaic_tpu(1.0, log_z, hidden, targets, words, **cut)
    return loss, (found[0].astype(hidden.dtype), found[1].astype(head.dtype))

  return run


def measure(
  name: str, chip: str, shape: tuple[int, int, int], blocks: tuple[Blocks, Blocks] = (FORWARD, BACKWARD)
) -> dict[str, Any]:
  """One library on one chip at (tokens, model, vocabulary): XLA's temporary bytes, and the score of each kernel's tile."""
  tokens, model, vocabulary = shape
  row: dict[str, Any] = {"library": name, "chip": chip, "tokens": tokens, "model": model, "vocabulary": vocabulary}
  program = {"ours": lambda: ours(blocks), "tokamax": lambda: tokamax(TOKAMAX[chip]), "xla": xla}[name]
  arrays = (
    jax.ShapeDtypeStruct((tokens, model), jnp.bfloat16), jax.ShapeDtypeStruct((model, vocabulary), jnp.float32),
    jax.ShapeDtypeStruct((tokens,), jnp.int32), jax.ShapeDtypeStruct((tokens,), jnp.float32),
  )  # fmt: skip
  device = topologies.get_topology_desc(TOPOLOGIES[chip], "tpu").devices[0]
  # tokamax asks while it is traced which TPU this is.
  asked = jax.sharding.use_abstract_mesh(Mesh(np.array([device]), ("x",)).abstract_mesh)
  try:
    with asked if name == "tokamax" else contextlib.nullcontext():
      made, _ = compiled(program(), arrays, chip)
  except Exception as error:  # what a library cannot do is a result too
    return row | {"error": f"{type(error).__name__}: {str(error)[:300]}"}
  row["temp_bytes"] = made.memory_analysis().temp_size_in_bytes
  for kernel in kernels_in_dump() if name != "xla" else []:
    direction = "forward" if "forward" in kernel["kernel"] or "fwd" in kernel["kernel"] else "backward"
    if name == "ours":
      scratch = forward_scratch if direction == "forward" else backward_scratch
      plan = make_plan(*arrays[:2], blocks[direction == "backward"], scratch, False)
      area, bundles = plan.tokens * plan.words, _bundles(direction, kernel, plan.chunks)
    else:
      area, bundles = TOKAMAX[chip][0] * TOKAMAX[chip][2], _tokamax_bundles(direction, kernel, model // TOKAMAX[chip][1])
    peak = PRODUCTS[direction] * TILE**2 * model / PEAK[chip]
    found = bundles * TILE**2 / area
    row[direction] = {"bundles": round(found), "score": round(max(found, peak)), "bundles_at_peak": round(peak)}
  return row


def _bundles(direction: str, kernel: dict[str, Any], chunks: int) -> int:
  """Of a tile: forward has one loop with products; backward the first tile's logits, then the others' and the gradients."""
  return chunks * sum(kernel["tiles"][-1:] if direction == "forward" else kernel["tiles"][-2:])


def _tokamax_bundles(direction: str, kernel: dict[str, Any], chunks: int) -> int:
  """Of a tile: its first logits, the others', then each gradient's first and later sums; what has no product once a tile."""
  first, other, *sums = kernel["tiles"]
  return first + (chunks - 1) * other + chunks * sum(sums[-2:]) * (direction == "backward") + kernel["rest_bundles"]


# Less than 1024 tokens a tile would read the head more often, which no score sees.
CANDIDATES = {
  "forward": [
    (1024, 1024, 512, 512), (1024, 2048, 512, 256), (1024, 2048, 512, 512), (1024, 2048, 512, 1024), (1024, 2048, 1024, 512),
    (2048, 1024, 512, 512),
  ],
  "backward": [
    (1024, 256, 1024, 1024), (1024, 512, 512, 512), (1024, 512, 512, 1024), (1024, 512, 1024, 512), (1024, 512, 1024, 1024),
  ],
}  # fmt: skip


def choose(chips: list[str], shape: tuple[int, int, int]) -> dict[str, list[dict[str, Any]]]:
  """Per direction the candidates, best first: the mean over chips of score over the best score there."""
  ranked = {}
  for direction, sizes in CANDIDATES.items():
    found = {}
    for blocks in (Blocks(*cut) for cut in sizes):
      pair = (blocks, BACKWARD) if direction == "forward" else (FORWARD, blocks)
      found[blocks] = [measure("ours", chip, shape, pair)[direction]["score"] for chip in chips]
    best = [min(column) for column in zip(*found.values(), strict=True)]
    means = {blocks: sum(a / b for a, b in zip(row, best, strict=True)) / len(best) for blocks, row in found.items()}
    order = sorted(found, key=lambda blocks: means[blocks])
    ranked[direction] = [{"blocks": str(b), "mean_over_best": round(means[b], 4), "scores": found[b]} for b in order]
  return ranked


def _rounding_product(a: Any, b: Any, *arguments: Any, **options: Any) -> Any:
  """As a matrix unit multiplies at the default precision: an interpreter would keep float32 operands whole."""
  return DOT_GENERAL(
    a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), *arguments, **(options | {"preferred_element_type": jnp.float32})
  )


def errors(shape: tuple[int, int, int] = (256, 512, 1024)) -> list[dict[str, Any]]:
  """Root mean square error over that of the float64 result, of the gradients of bfloat16 hidden states and head."""
  tokens, model, vocabulary = shape
  keys = jax.random.split(jax.random.key(0), 3)
  hidden = jax.random.normal(keys[0], (tokens, model), jnp.bfloat16)
  head = (jax.random.normal(keys[1], (model, vocabulary)) * 2 / model**0.5).astype(jnp.bfloat16)
  targets, weights = jax.random.randint(keys[2], (tokens,), 0, vocabulary), jnp.ones(tokens)
  h, w = (np.asarray(x, np.float64) for x in (hidden, head))
  logits = h @ w
  log_z = np.log(np.exp(logits).sum(1, keepdims=True))
  hot = np.eye(vocabulary)[np.asarray(targets)]
  rows = []
  for name in ("ours", "tokamax", "tokamax, rounded", "xla"):
    z_loss = 0 if "tokamax" in name else 1e-4
    d_logits = np.exp(logits - log_z) * (1 + 2 * z_loss * log_z) - hot
    exact = (log_z[:, 0] - (hot * logits).sum(1) + z_loss * log_z[:, 0] ** 2).sum(), d_logits @ w.T, h.T @ d_logits
    program = {"ours": ours(interpret=True), "xla": xla()}.get(name) or tokamax((128, 128, 256))
    with contextlib.ExitStack() as stack:
      if "tokamax" in name:
        stack.enter_context(pltpu.force_tpu_interpret_mode())
      if "rounded" in name:
        stack.enter_context(unittest.mock.patch.object(jax.lax, "dot_general", _rounding_product))
      jax.clear_caches()  # of what was traced without the rounding
      loss, found = jax.jit(program)(hidden, head, targets, weights)
    each = [np.sqrt(np.mean((np.float64(a) - b) ** 2) / np.mean(b**2)) for a, b in zip((loss, *found), exact, strict=True)]
    rows.append({"library": name} | {k: float(f"{e:.3g}") for k, e in zip(("loss", "d_hidden", "d_head"), each, strict=True)})
  return rows


def main() -> None:
  """Prints the measurements."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
  parser.add_argument("--only", choices=LIBRARIES, help="one library")
  parser.add_argument("--chips", nargs="+", choices=tuple(TOPOLOGIES), default=list(TOPOLOGIES))
  parser.add_argument("--shape", type=int, nargs=3, default=(4096, 4096, 262_144), metavar=("TOKENS", "MODEL", "VOCABULARY"))
  parser.add_argument("--choose", action="store_true", help="rank block sizes instead")
  parser.add_argument("--errors", action="store_true", help="errors against float64 instead")
  arguments = parser.parse_args()
  shape = tuple(arguments.shape)
  show = json.dumps if arguments.json else str
  try:
    if arguments.choose:
      for direction, rows in choose(arguments.chips, shape).items():
        for row in rows:
          print(show({"direction": direction} | row))
    elif arguments.errors:
      for row in errors():
        print(show(row))
    else:
      for chip, name in itertools.product(arguments.chips, (arguments.only,) if arguments.only else LIBRARIES):
        print(show(measure(name, chip, shape)), flush=True)
  finally:
    shutil.rmtree(DUMP, ignore_errors=True)


if __name__ == "__main__":
  main()
