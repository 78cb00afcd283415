"""Tokens in, hidden states and logits out; knows nothing of data or loss."""
