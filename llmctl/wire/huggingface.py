"""A Hugging Face `config.json` as our ModelConfig, and back: pure, so that planner and worker agree.

What a file leaves out has the default that `transformers` gives it, because that is what the weights were
made with. What our decoder can't do is refused by the name of the field; a field that `transformers` does
not read for this family is ignored here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from llmctl.errors import ConfigError
from llmctl.wire.model import ModelConfig

CONFIG_FILE = "config.json"

_COMMON: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "max_position_embeddings": 2048,
}
_QWEN: dict[str, Any] = {
    **_COMMON,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_position_embeddings": 32768,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _COMMON,
    "mistral": {
        **_COMMON,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
}
"""`model_type` to the defaults of its fields, as in transformers' configuration_*.py (5.x, and 4.x alike)."""

_NUMBERS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn_dim",
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_NOT_COPIED = frozenset(
    {
        "_name_or_path",
        "dtype",
        "layer_types",
        "max_window_layers",
        "quantization_config",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "torch_dtype",
        "transformers_version",
        "use_sliding_window",
    }
)
"""Fields of a base configuration that an export writes anew, or that would be untrue of it."""


def from_hf(document: Mapping[str, Any]) -> ModelConfig:
    """The decoder that a `config.json` describes.

    Raises:
        ConfigError: our decoder can't be that model, or a value makes no sense; names field and value.
    """
    family = document.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise _refusal(
            document, "model_type", f"these can be loaded: {', '.join(FAMILIES)} (SmolLM is a llama)"
        )
    _refuse_what_we_lack(document, family)
    given = {**FAMILIES[family], **document}
    numbers: dict[str, Any] = {ours: _integer(given, theirs) for theirs, ours in _NUMBERS.items()}
    heads: int = numbers["heads"]
    kv_heads = heads if given["num_key_value_heads"] is None else _integer(given, "num_key_value_heads")
    head_size = None if given["head_dim"] is None else _integer(given, "head_dim")
    if head_size is not None and head_size * heads == numbers["dim"]:
        head_size = None
    bias = _boolean(given, "attention_bias")
    return ModelConfig(
        **numbers,
        kv_heads=kv_heads,
        head_size=head_size,
        tied_head=_boolean(given, "tie_word_embeddings"),
        norm_eps=_number(given, "rms_norm_eps"),
        qkv_bias=family == "qwen2" or (bias and family != "mistral"),
        out_bias=bias and family in ("llama", "qwen3"),
        qk_norm=family == "qwen3",
        window=_window(given, family, numbers["layers"]),
        **_rope(given),
    )


def to_hf(
    config: ModelConfig,
    *,
    dtype: str,
    max_positions: int,
    eos: Optional[int] = None,
    base: Optional[Mapping[str, Any]] = None,
) -> dict[str, Any]:
    """The `config.json` of a model that was trained here.

    Args:
        dtype: of the stored weights, as torch names it: `float32`, `bfloat16`.
        max_positions: longest sequence that it knows; a base configuration's own number wins.
        base: the configuration of the model that training began with; what is no shape is taken from it.

    Raises:
        ConfigError: no family of Hugging Face models is of this shape; names what stands in the way.
    """
    base = base or {}
    families = list(FAMILIES)
    if base.get("model_type") in families:
        families.sort(key=lambda family: family != base.get("model_type"))
    for family in families:
        document = _document(config, family, dtype, max_positions, eos, base)
        if from_hf(document) == config:
            return document
    raise ConfigError(
        f"no Hugging Face family has a decoder with {_features(config)}",
        hint=f"these can be written: {', '.join(FAMILIES)}",
        stage="export",
    )


def _document(
    config: ModelConfig,
    family: str,
    dtype: str,
    max_positions: int,
    eos: Optional[int],
    base: Mapping[str, Any],
) -> dict[str, Any]:
    document = {name: value for name, value in base.items() if name not in _NOT_COPIED}
    document.update({theirs: getattr(config, ours) for theirs, ours in _NUMBERS.items()})
    document.update(
        architectures=[_ARCHITECTURES[family]],
        model_type=family,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        hidden_act="silu",
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.tied_head,
        attention_bias=config.qkv_bias and config.out_bias,
        rope_theta=config.rope_theta,
        rope_scaling=_rope_scaling(config),
        torch_dtype=dtype,
    )
    document.setdefault("max_position_embeddings", max_positions)
    if eos is not None:
        document.setdefault("eos_token_id", eos)
        document.setdefault("bos_token_id", None)
    if family == "mistral":
        document["sliding_window"] = config.window
    elif family in ("qwen2", "qwen3"):
        document.update(sliding_window=None, use_sliding_window=False)
    else:
        document["mlp_bias"] = False
        document.pop("sliding_window", None)
    return document


def _rope_scaling(config: ModelConfig) -> Optional[dict[str, Any]]:
    if config.rope_scaling == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
    if config.rope_scaling == "llama3":
        scaling.update(
            low_freq_factor=config.rope_low,
            high_freq_factor=config.rope_high,
            original_max_position_embeddings=config.rope_original,
        )
    return scaling


def _features(config: ModelConfig) -> str:
    """What tells the families apart, in words."""
    told = {
        "biases on q, k and v": config.qkv_bias,
        "a bias on the attention's output": config.out_bias,
        "q/k norms": config.qk_norm,
        f"a window of {config.window}": config.window is not None,
    }
    return ", ".join(name for name, has in told.items() if has) or "this shape"


def _refuse_what_we_lack(document: Mapping[str, Any], family: str) -> None:
    if document.get("quantization_config"):
        raise _refusal(document, "quantization_config", "only bf16, fp16 and fp32 weights can be loaded")
    if document.get("auto_map"):
        raise _refusal(document, "auto_map", "a model with code of its own can't be loaded")
    if document.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _refusal(document, "hidden_act", "the feed-forward layer is SwiGLU: silu")
    if family == "llama" and document.get("mlp_bias"):
        raise _refusal(document, "mlp_bias", "the feed-forward layer has no biases")
    if document.get("partial_rotary_factor", 1.0) != 1.0:
        raise _refusal(document, "partial_rotary_factor", "positions rotate whole heads")


def _window(given: Mapping[str, Any], family: str, layers: int) -> Optional[int]:
    """The sliding window that all layers have, or None.

    Raises:
        ConfigError: some layers have one and others have not.
    """
    width = given["sliding_window"]
    if family == "llama" or width is None:
        return None
    if family == "mistral":
        return _integer(given, "sliding_window")
    # Qwen: only where it is switched on, and then from one layer on.
    kinds = given.get("layer_types")
    if kinds is None:
        on = _boolean({"use_sliding_window": False, **given}, "use_sliding_window")
        first = given.get("max_window_layers", 28) if on else layers
        kinds = ["sliding_attention" if index >= first else "full_attention" for index in range(layers)]
    if set(kinds) <= {"full_attention"}:
        return None
    if set(kinds) == {"sliding_attention"}:
        return _integer(given, "sliding_window")
    if given.get("layer_types") is not None:
        raise _refusal(given, "layer_types", "the window must be the same in all layers")
    raise _refusal(
        given, "use_sliding_window", "the window must be the same in all layers (max_window_layers)"
    )


def _rope(given: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 writes `rope_parameters`; before that it was `rope_theta` and `rope_scaling`."""
    name = "rope_parameters" if given.get("rope_parameters") else "rope_scaling"
    scaling = given.get(name) or {}
    if not isinstance(scaling, Mapping) or any(isinstance(value, Mapping) for value in scaling.values()):
        raise _refusal(given, name, "expected one set of values for all layers")
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise _refusal(given, name, "positions rotate whole heads")
    defaults = {"rope_theta": given.get("rope_theta", 10_000.0)}
    found: dict[str, Any] = {"rope_theta": _number({**defaults, **scaling}, "rope_theta")}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return found
    if kind not in ("linear", "llama3"):
        raise _refusal(given, name, "of these only default, linear and llama3 are known")
    found.update(rope_scaling=kind, rope_factor=_number(scaling, "factor"))
    if kind == "llama3":
        # Without it, transformers takes the longest length that the model is made for.
        original = {"original_max_position_embeddings": given["max_position_embeddings"], **scaling}
        found.update(
            rope_low=_number(scaling, "low_freq_factor"),
            rope_high=_number(scaling, "high_freq_factor"),
            rope_original=_integer(original, "original_max_position_embeddings"),
        )
    return found


def _integer(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _refusal(given, name, "expected a whole number above 0")
    return value


def _number(given: Mapping[str, Any], name: str) -> float:
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise _refusal(given, name, "expected a number above 0")
    return float(value)


def _boolean(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name)
    if not isinstance(value, bool):
        raise _refusal(given, name, "expected true or false")
    return value


def _refusal(document: Mapping[str, Any], name: str, why: str) -> ConfigError:
    told = repr(document.get(name)) if name in document else "missing"
    shown = told if len(told) <= 200 else told[:200] + "…"
    return ConfigError(f"{CONFIG_FILE}: {name} is {shown}: {why}", stage="model")
