"""Documents in, packed batches out, position resumable."""
