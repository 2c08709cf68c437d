"""Where the worker finds the model's shape; its one home is `wire/model.py`, which the planner reads too."""

from __future__ import annotations

from llmctl.wire.model import (
    ModelConfig,
    count_body_parameters,
    count_parameters,
    padded_vocab,
    parse_model_config,
)

__all__ = ["ModelConfig", "count_body_parameters", "count_parameters", "padded_vocab", "parse_model_config"]
