"""Hidden states and roles in, scalar loss out."""
