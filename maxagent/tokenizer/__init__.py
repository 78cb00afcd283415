"""Text and reserved names to ids and back."""

from maxagent.tokenizer.model import Tokenizer
from maxagent.tokenizer.training import train

__all__ = ["Tokenizer", "train"]
