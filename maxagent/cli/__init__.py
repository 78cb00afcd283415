"""Flags in, one call out; one module per command."""
