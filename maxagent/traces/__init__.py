"""What an agent did: segments, roles, statuses, reserved names; typed text out of it."""
