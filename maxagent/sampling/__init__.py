"""Decoding with a cache, and THE loop of an agent in a world, for evals, RL and play alike."""
