"""Measurements during training."""
