"""Masked softmax attention: the reference that every kernel and backend must equal."""

from maxagent_kernels.attention.reference import attention_reference

__all__ = ["attention_reference"]
