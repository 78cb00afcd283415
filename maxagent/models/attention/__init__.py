"""Attention behind one contract: `contract.attention` is what layers call, a backend is what computes it."""

from maxagent.models.attention.contract import BACKENDS, SAVED_NAMES, attention

__all__ = ["BACKENDS", "SAVED_NAMES", "attention"]
