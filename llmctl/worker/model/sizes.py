"""Where the worker finds the sizes that a job can name; their one home is `wire/model.py`."""

from __future__ import annotations

from llmctl.wire.model import SIZES, model_config

__all__ = ["SIZES", "model_config"]
