"""What a metric's name gives away: whether it is continuous, which way is better, and who its partner is."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Metrics that follow the model smoothly (arXiv 2304.15004, section 3); of several partners the one named first here is taken.
_CONTINUOUS_WORDS = (
  "log_?prob", "log_?lik", "nll", "cross_?entropy", "(?<![a-z])ce(?![a-z])", "loss", "bits", "bpb", "bpc", "perplexity", "ppl",
  "brier", "edit_distance", "margin", "entropy",
)  # fmt: skip
_CONTINUOUS = re.compile("|".join(_CONTINUOUS_WORDS))
_LESS_IS_BETTER = re.compile(
  r"nll|entropy|(?<![a-z])ce(?![a-z])|loss|bits|bpb|bpc|perplexity|ppl|brier|distance|error|invalid|fail|miss|turns|limit|full"
)
_SCORE = re.compile(
  r"(?<![a-z])(accuracy|acc|acc_norm|exact_match|em|success|recovery|pass@\d+|f1|score|recall|solved|rate)(,\w+)?$"
)
_BESIDE = re.compile(r"_(items|n|count|total|low|high|stderr|std|se|ci)(,\w+)?$")
_EVALUATIONS = re.compile(r"^(eval|evals|evaluation|valid|validation|val|test|heldout)[/._]")


def owner(name: str) -> str | None:
  """The metric of which `name` says something: acc for acc_low and acc_items, acc,none for acc_stderr,none; None for others."""
  found = _BESIDE.search(name)
  return None if found is None else name[: found.start()] + (found.group(2) or "")


def beside(name: str, what: str) -> str:
  """The name under which something is said of a metric: acc_low for acc, acc_low,none for acc,none."""
  stem, comma, filter_name = name.partition(",")
  return f"{stem}_{what}{comma}{filter_name}"


def is_continuous(name: str) -> bool:
  """Whether a metric is a loss, a log-probability or another that follows the model smoothly. The last word decides."""
  last = name.rpartition("/")[2]
  if _CONTINUOUS.search(last):
    return True
  return not _SCORE.search(last) and bool(_CONTINUOUS.search(name))


def is_score(name: str) -> bool:
  """Whether a metric is an accuracy or another share of items, by its last word."""
  return bool(_SCORE.search(name.rpartition("/")[2]))


def more_is_better(name: str) -> bool:
  """Whether a rise is good news: no for losses, errors and failures."""
  last = name.rpartition("/")[2]
  if _CONTINUOUS.search(last) or _SCORE.search(last) or not is_continuous(name):
    return not _LESS_IS_BETTER.search(last)
  return not _LESS_IS_BETTER.search(name)


def watched(names: Iterable[str]) -> list[str]:
  """The metrics that are watched unless one is named: those of evaluations, or all where no name says that it is one.

  A digest is a number and no measurement.
  """
  listed = [name for name in names if not name.endswith("digest")]
  return [name for name in listed if _EVALUATIONS.search(name)] or listed


def partner_of(name: str, names: Iterable[str]) -> str | None:
  """The continuous metric with the same prefix: eval/task/log_prob for eval/task/accuracy, mmlu_loss for mmlu_acc.

  Of several, one that repeats the score's own word comes first (recovery_log_prob for recovery), then the order above.
  """
  if is_continuous(name):
    return None
  folder, slash, last = name.rpartition("/")
  score = _SCORE.search(last)
  prefix = folder + slash + (last[: score.start()] if score else "")
  word = score.group(1) if score else last
  found = []
  for other in names:
    rest = other[len(prefix) :]
    if other.startswith(prefix) and "/" not in rest and not _BESIDE.search(other) and _CONTINUOUS.search(rest):
      rank = next(n for n, pattern in enumerate(_CONTINUOUS_WORDS) if re.search(pattern, rest))
      found.append((word not in rest, rank, len(rest), other))
  return min(found)[-1] if found else None
