"""The sizes that a job can name, each a full set of shape numbers; the vocabulary comes from the data."""

from __future__ import annotations

from typing import Any

from llmctl.errors import ConfigError
from llmctl.wire.recipe import ModelSpec
from llmctl.worker.model.config import ModelConfig, padded_vocab, parse_model_config


def _shape(layers: int, dim: int, heads: int, kv_heads: int, ffn_dim: int, **more: Any) -> dict[str, Any]:
    return {"layers": layers, "dim": dim, "heads": heads, "kv_heads": kv_heads, "ffn_dim": ffn_dim, **more}


SIZES: dict[str, dict[str, Any]] = {
    # About 1.2 M and 20 M outside the embedding: wide rather than deep, which CPUs like.
    "tiny": _shape(3, 192, 6, 2, 512),
    "small": _shape(8, 512, 8, 4, 1152),
    # 125 M and 350 M in all with a 32k vocabulary.
    "125m": _shape(12, 768, 12, 4, 3072),
    "350m": _shape(24, 1024, 16, 8, 3328),
    # The shapes of Llama 3.2 1B and 3B and of Llama 2 7B.
    "1b": _shape(16, 2048, 32, 8, 8192, rope_theta=500_000.0),
    "3b": _shape(28, 3072, 24, 8, 8192, rope_theta=500_000.0),
    "7b": _shape(32, 4096, 32, 32, 11008, tied_head=False),
}


def model_config(spec: ModelSpec, tokens: int) -> ModelConfig:
    """The model that `spec` asks for, over a tokenizer with `tokens` ids.

    Raises:
        ConfigError: an unknown size or field, or numbers that do not fit together; names the field.
    """
    if spec.size not in SIZES:
        raise ConfigError(
            f"model.size: no size {spec.size!r}", hint="one of " + ", ".join(SIZES), stage="model"
        )
    return parse_model_config({"vocab_size": padded_vocab(tokens), **SIZES[spec.size], **spec.overrides})
