"""What a run will cost before it starts: the real step compiled for a named topology, and arithmetic on what came out."""
