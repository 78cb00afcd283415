"""State, one step, the loop (which takes callbacks; it does not know evals)."""
