"""What tests against the Hugging Face libraries share: the libraries themselves, tiny models, our decoder."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmctl.worker.hf.__main__ import main
from llmctl.worker.hf.weights import open_weights
from llmctl.worker.model.decoder import Decoder, make_decoder
from tests.worker_kit import ROOT

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 |= {"original_max_position_embeddings": 16, "rope_theta": 500_000.0}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied-biased": ("Llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama-3": ("Llama", {"rope_parameters": _LLAMA3, "head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 9}),
}
"""Name of the case to class prefix in transformers, and what is special about it."""


def library(name: str) -> Any:
    """An optional package of the `dev` extra; a test that can't have it is skipped, but not in CI."""
    if os.environ.get("LLMCTL_REQUIRE_HF") == "1":
        return import_module(name)
    return pytest.importorskip(name, reason=f"needs {name}: pip install -e '.[dev]'")


def tiny(family: str, folder: Path, *, shard_size: str = "5GB", **changes: Any) -> Any:
    """A random transformers model of a family, saved to `folder`; norms and biases are random, too."""
    transformers = library("transformers")
    prefix, special = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**SHAPE, **special, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.normal_(0.5, 0.3)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def loaded(folder: str | Path) -> Any:
    """A transformers model in fp32 from a folder."""
    auto = library("transformers").AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


def ours(uri: str | Path) -> Decoder:
    """Our decoder with the weights at `uri`."""
    with open_weights(str(uri)) as weights, torch.no_grad():
        model = make_decoder(weights.config, torch.device("cpu"))
        named = dict(model.named_parameters())
        for name, tensor in weights.items(list(named)):
            named[name].copy_(tensor)
    return model.requires_grad_(False).eval()


def tokens(vocab_size: int = 257, length: int = 60) -> Tensor:
    """Two rows of ids, always the same."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, vocab_size, (2, length), generator=generator)


@torch.no_grad()
def difference(mine: Any, theirs: Any, ids: Tensor) -> float:
    """The largest difference of logits between two models, of either kind."""
    first, second = (getattr(out, "logits", out) for out in (mine(ids), theirs(ids)))
    return float((first - second).abs().max())


def convert(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python -m llmctl.worker.hf` with these arguments."""
    command = [sys.executable, "-W", "error", "-m", "llmctl.worker.hf", *map(str, arguments)]
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env, cwd="/")


def run(*arguments: str | Path) -> None:
    """The same in this process, which has torch already."""
    assert main([str(argument) for argument in arguments]) == 0


def checked(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`convert`, which must succeed."""
    done = convert(*arguments)
    assert done.returncode == 0, done.stderr
    return done
