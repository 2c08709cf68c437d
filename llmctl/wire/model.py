"""The shape of a decoder: every number of it, checked before a tensor exists, and the sizes by name.

The worker builds what this says; the planner counts it. Neither needs torch to know it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from llmctl.errors import ConfigError
from llmctl.wire.recipe import ModelSpec


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-style decoder.

    Attributes:
        vocab_size: rows of the embedding; `padded_vocab` of the tokenizer's own size.
        dim: width of the residual stream.
        heads: query heads; `kv_heads` key and value heads, each shared by heads / kv_heads query heads.
        ffn_dim: inner width of the SwiGLU layer.
        tied_head: the output head is the embedding itself.
        head_size: width of one head, where it is not dim / heads.
        qkv_bias, out_bias: the projections into and out of attention add a vector.
        qk_norm: queries and keys pass an RMSNorm over head_dim before they are rotated.
        window: positions that a query sees, itself included; None: all before it.
        rope_scaling: `none`, `linear` (all angles divided by `rope_factor`) or `llama3`: only the slow
            angles are, those of more than `rope_original` / `rope_low` positions per turn, those of less
            than `rope_original` / `rope_high` are not, between them it goes over smoothly.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn_dim: int
    tied_head: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    head_size: Optional[int] = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    window: Optional[int] = None
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_original: int = 8192

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "layers", "heads", "kv_heads", "ffn_dim"):
            _require(getattr(self, name) >= 1, name, f"must be at least 1, not {getattr(self, name)}")
        if self.head_size is None:
            _require(self.dim % self.heads == 0, "heads", f"{self.heads} does not divide dim {self.dim}")
        width = "dim / heads" if self.head_size is None else "head_size"
        fits = self.head_dim >= 1 and self.head_dim % 2 == 0
        _require(fits, "heads", f"{width} is {self.head_dim}; rotation needs an even one")
        _require(
            self.heads % self.kv_heads == 0, "kv_heads", f"{self.kv_heads} does not divide heads {self.heads}"
        )
        _require(self.rope_theta > 0, "rope_theta", f"must be above 0, not {self.rope_theta}")
        _require(self.norm_eps > 0, "norm_eps", f"must be above 0, not {self.norm_eps}")
        _require(self.window is None or self.window >= 1, "window", f"must be at least 1, not {self.window}")
        self._check_rope_scaling()

    def _check_rope_scaling(self) -> None:
        kinds = ("none", "linear", "llama3")
        _require(
            self.rope_scaling in kinds,
            "rope_scaling",
            f"{self.rope_scaling!r} is not one of {', '.join(kinds)}",
        )
        for name in ("rope_factor", "rope_low", "rope_original"):
            _require(getattr(self, name) > 0, name, f"must be above 0, not {getattr(self, name)}")
        _require(self.rope_high > self.rope_low, "rope_high", f"must be above rope_low, not {self.rope_high}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads if self.head_size is None else self.head_size

    @property
    def q_dim(self) -> int:
        return self.head_dim * self.heads

    @property
    def kv_dim(self) -> int:
        return self.head_dim * self.kv_heads


def _require(holds: bool, field: str, message: str) -> None:
    if not holds:
        raise ConfigError(f"model.{field}: {message}", stage="model")


def parse_model_config(values: Mapping[str, Any]) -> ModelConfig:
    """A ModelConfig from plain values, as a job or COMMIT.json has them.

    Raises:
        ConfigError: an unknown field, a missing one, a wrong type, or numbers that do not fit together.
    """
    fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
    for name, value in values.items():
        _require(name in fields, name, f"no such field; there are {', '.join(fields)}")
        _require(_fits(fields[name].type, value), name, f"expected {fields[name].type}, found {value!r}")
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    _require(not missing, ", ".join(missing), "missing")
    return ModelConfig(**values)


def _fits(kind: object, value: object) -> bool:
    """Whether `value` is of the annotated type; a bool is no number, an int is a float."""
    if kind == "Optional[int]":
        return value is None or _fits("int", value)
    if kind == "str":
        return isinstance(value, str)
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    return isinstance(value, int) or (kind == "float" and isinstance(value, float))


def padded_vocab(tokens: int) -> int:
    """The next multiple of 64: matrix kernels are faster, and tensor parallelism can divide it."""
    return -(-tokens // 64) * 64


def count_parameters(config: ModelConfig) -> int:
    """Trainable numbers in the model, without building it."""
    return config.vocab_size * config.dim * (1 if config.tied_head else 2) + count_body_parameters(config)


def count_body_parameters(config: ModelConfig) -> int:
    """Trainable numbers outside the embedding and the head."""
    attention = 2 * config.dim * (config.q_dim + config.kv_dim)
    attention += config.qkv_bias * (config.q_dim + 2 * config.kv_dim) + config.out_bias * config.dim
    attention += config.qk_norm * 2 * config.head_dim
    block = attention + 3 * config.dim * config.ffn_dim + 2 * config.dim
    return config.layers * block + config.dim


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
