"""State to disk and back, proven whole."""

from maxagent.checkpoint.catalog import Entry, catalog
from maxagent.checkpoint.manager import Checkpoints
from maxagent.checkpoint.restore import Restored, Verified, locate, restore_params, saved_steps, verify

__all__ = ["Checkpoints", "Entry", "Restored", "Verified", "catalog", "locate", "restore_params", "saved_steps", "verify"]
