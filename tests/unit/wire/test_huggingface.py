"""config.json to our shape and back, on the configurations of real models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import ConfigError
from llmctl.wire.huggingface import FAMILIES, from_hf, to_hf
from llmctl.wire.model import ModelConfig, count_parameters

DATA = Path(__file__).parents[2] / "data" / "hf"

PARAMETERS = {
    "Llama-2-7b-hf": 6_738_415_616,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Mistral-Nemo-Base-2407": 12_247_782_400,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen3-0.6B": 596_049_920,
    "SmolLM2-135M": 134_515_008,
    "deepseek-coder-1.3b-base": 1_346_471_936,
}
SMALL = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
SMALL |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def real(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return document


def test_every_captured_file_is_looked_at() -> None:
    """A configuration that is added to the folder is not forgotten here."""
    assert {path.stem for path in DATA.glob("*.json")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_real_configuration_has_as_many_parameters_as_its_model(name: str) -> None:
    """The shape that we read is the model's: its number of parameters is the published one."""
    assert count_parameters(from_hf(real(name))) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_real_configuration_survives_the_way_through_ours(name: str) -> None:
    """What an export writes means the same model, of the same family, as what was loaded."""
    document = real(name)
    written = to_hf(from_hf(document), dtype="bfloat16", max_positions=128, base=document)
    for key in ("model_type", "architectures", "eos_token_id", "max_position_embeddings", "rms_norm_eps"):
        assert written[key] == document[key], key
    assert from_hf(written) == from_hf(document)


def test_what_makes_each_family_special_is_seen() -> None:
    """Biases, norms, windows and scaled rotations are read from the family or its fields."""
    assert from_hf(real("Qwen2.5-0.5B")).qkv_bias
    assert not from_hf(real("Qwen2.5-0.5B")).out_bias
    assert from_hf(real("Qwen2.5-0.5B")).window is None
    assert from_hf(real("Qwen3-0.6B")).qk_norm
    assert from_hf(real("Qwen3-0.6B")).head_dim == 128
    assert from_hf(real("Mistral-7B-v0.1")).window == 4096
    assert from_hf(real("Mistral-7B-v0.3")).window is None
    assert from_hf(real("Llama-3.2-1B")).rope_scaling == "llama3"
    assert from_hf(real("Llama-3.2-1B")).rope_factor == 32.0
    assert from_hf(real("deepseek-coder-1.3b-base")).rope_scaling == "linear"


def test_the_new_form_of_the_rotation_means_the_same() -> None:
    """transformers 5 writes rope_parameters where it was rope_theta and rope_scaling before."""
    old = real("Llama-3.1-8B")
    new = {name: value for name, value in old.items() if name not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {**old["rope_scaling"], "rope_theta": old["rope_theta"]}
    assert from_hf(new) == from_hf(old)


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"model_type": "gpt2"}, "model_type", "gpt2"),
        ({"model_type": None}, "model_type", "None"),
        ({"hidden_act": "gelu"}, "hidden_act", "gelu"),
        ({"mlp_bias": True}, "mlp_bias", "True"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config", "gptq"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map", "x.Y"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling", "yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling", "dynamic"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor", "missing"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "0.5"),
        ({"hidden_size": "32"}, "hidden_size", "'32'"),
        ({"vocab_size": True}, "vocab_size", "True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers", "0"),
        ({"rms_norm_eps": -1}, "rms_norm_eps", "-1"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings", "'no'"),
    ],
)
def test_what_can_not_be_loaded_is_named(change: dict[str, Any], field: str, value: str) -> None:
    """Whoever has a model that does not map reads which field stands in the way, and its value."""
    with pytest.raises(ConfigError) as caught:
        from_hf({**SMALL, **change})
    assert field in caught.value.message
    assert value in caught.value.message


def test_a_window_in_some_layers_only_is_refused() -> None:
    """Qwen2 can switch the window on from one layer on; our layers are all alike."""
    document = {**SMALL, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}
    with pytest.raises(ConfigError, match="max_window_layers"):
        from_hf(document)
    assert from_hf({**document, "max_window_layers": 0}).window == 4096
    assert from_hf({**document, "max_window_layers": 2}).window is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_partial_configuration_has_the_defaults_of_its_family(family: str) -> None:
    """A field that is left out is what transformers takes for it, not what we would."""
    config = from_hf({"model_type": family, "head_dim": 128} if family == "qwen3" else {"model_type": family})
    assert config.dim == 4096
    assert config.norm_eps == 1e-6
    assert not config.tied_head
    assert config.kv_heads == {"mistral": 8}.get(family, 32)
    assert config.window == {"mistral": 4096}.get(family)


def test_a_shape_that_no_family_has_is_refused_with_what_is_odd() -> None:
    """Our decoder can be what no Hugging Face model is; then an export says so."""
    config = ModelConfig(
        vocab_size=64, dim=32, layers=2, heads=4, kv_heads=2, ffn_dim=48, qk_norm=True, window=8
    )
    with pytest.raises(ConfigError, match=r"q/k norms, a window of 8"):
        to_hf(config, dtype="float32", max_positions=64)


@given(
    heads=st.sampled_from([2, 4]),
    tied=st.booleans(),
    kind=st.sampled_from(["plain", "qwen2", "qwen3", "window", "biased", "llama3", "linear"]),
    head_size=st.sampled_from([None, 16]),
)
def test_any_shape_of_a_family_survives_the_round_trip(
    heads: int, tied: bool, kind: str, head_size: int | None
) -> None:
    """A model that was trained from scratch can be exported, and means the same when loaded again."""
    features: dict[str, Any] = {
        "plain": {},
        "qwen2": {"qkv_bias": True},
        "qwen3": {"qk_norm": True},
        "window": {"window": 7},
        "biased": {"qkv_bias": True, "out_bias": True},
        "llama3": {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original": 64},
        "linear": {"rope_scaling": "linear", "rope_factor": 2.0},
    }[kind]
    config = ModelConfig(
        vocab_size=64,
        dim=48,
        layers=2,
        heads=heads,
        kv_heads=2,
        ffn_dim=48,
        tied_head=tied,
        head_size=head_size,
        **features,
    )
    assert from_hf(to_hf(config, dtype="float32", max_positions=64, eos=3)) == config
