"""llmctl: SSH-reachable machines as one LLM training and inference cluster."""

__version__ = "0.1.0"
