"""Runs once per GPU, started by torchrun: the built-in training recipe, and `report` for your own scripts.

The whole public API for scripts is `from llmctl.worker import report`; it needs no torch.
"""

from llmctl.worker.reporting import report

__all__ = ["report"]
