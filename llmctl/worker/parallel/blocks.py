"""What each block of a model is told before it is sharded: to recompute, to be compiled, to drop."""

from __future__ import annotations

import os
import shutil

import torch

from llmctl.errors import ConfigError, PreflightError
from llmctl.wire.recipe import RecipeSpec
from llmctl.worker.model.decoder import Block, Decoder

CHECKPOINTING = ("none", "full", "selective")


def prepare_blocks(model: Decoder, recipe: RecipeSpec, device: torch.device) -> None:
    """Set up activation checkpointing, dropout and compilation as the recipe says.

    Raises:
        ConfigError: no such setting. PreflightError: nothing here can compile.
    """
    if recipe.activation_checkpointing not in CHECKPOINTING:
        raise ConfigError(
            f"recipe.activation_checkpointing: {recipe.activation_checkpointing!r} is not one of "
            + ", ".join(CHECKPOINTING),
            stage="recipe",
        )
    model.dropout, model.dropout_seed = recipe.dropout, recipe.seed
    if recipe.compile:
        _require_compiler(device)
    for name, block in model.layers.items():
        assert isinstance(block, Block)  # noqa: S101 - for the type checker
        block.recomputes = recomputes(recipe.activation_checkpointing, int(name))
        if recipe.compile:
            block.compile()


def recomputes(setting: str, layer: int) -> bool:
    """Whether a layer keeps only its input. `selective`: every second one of the whole model."""
    return setting == "full" or (setting == "selective" and layer % 2 == 1)


def _require_compiler(device: torch.device) -> None:
    """torch.compile for a CPU writes C++; without a compiler it fails in the first step, in many words."""
    if device.type != "cpu":
        return
    names = (os.environ.get("CXX"), "g++", "clang++")
    if not any(name and shutil.which(name) for name in names):
        raise PreflightError(
            "recipe.compile needs a C++ compiler, and this host has neither g++ nor clang++",
            hint="install one, or set recipe.compile: false",
            stage="compile",
        )
