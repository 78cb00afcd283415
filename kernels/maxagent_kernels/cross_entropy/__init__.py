"""Linear cross-entropy: the reference, and the TPU kernels that hold no logits."""

from maxagent_kernels.cross_entropy.linear import Scores, linear_scores
from maxagent_kernels.cross_entropy.plan import BACKWARD, FORWARD, Blocks
from maxagent_kernels.cross_entropy.reference import linear_scores_reference

__all__ = ["BACKWARD", "FORWARD", "Blocks", "Scores", "linear_scores", "linear_scores_reference"]
