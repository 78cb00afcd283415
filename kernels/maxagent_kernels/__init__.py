"""Kernels, each beside its plain-JAX reference. Imports jax only."""
