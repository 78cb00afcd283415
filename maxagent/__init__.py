"""maxagent: pre-training of agentic language models, from a laptop CPU to a TPU pod."""

__version__ = "0.1.0"
