"""Model sizes and their checks: pure numbers, held against the module that they describe."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import ConfigError
from llmctl.wire.recipe import ModelSpec
from llmctl.worker.model.config import (
    ModelConfig,
    count_body_parameters,
    count_parameters,
    padded_vocab,
    parse_model_config,
)
from llmctl.worker.model.decoder import make_decoder
from llmctl.worker.model.sizes import SIZES, model_config

SMALL = {"vocab_size": 64, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_dim": 48}


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_as_many_parameters_as_the_pure_count_says(size: str) -> None:
    """The planner may trust count_parameters without building a model."""
    config = model_config(ModelSpec(size=size), 32_000)
    model = make_decoder(config, torch.device("meta"))
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(config)


@given(
    heads=st.sampled_from([1, 2, 4]),
    pairs=st.integers(1, 4),
    layers=st.integers(1, 3),
    ffn_dim=st.integers(1, 40),
    tied=st.booleans(),
)
def test_count_holds_for_any_shape(heads: int, pairs: int, layers: int, ffn_dim: int, tied: bool) -> None:
    """The count is a formula of the configuration, not a table of the named sizes."""
    config = ModelConfig(
        vocab_size=10,
        dim=heads * 2 * pairs,
        layers=layers,
        heads=heads,
        kv_heads=1,
        ffn_dim=ffn_dim,
        tied_head=tied,
    )
    model = make_decoder(config, torch.device("meta"))
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(config)


@pytest.mark.parametrize(
    ("size", "low", "high"), [("125m", 115e6, 135e6), ("350m", 330e6, 370e6), ("7b", 6.5e9, 7.0e9)]
)
def test_sizes_are_what_their_names_say(size: str, low: float, high: float) -> None:
    """With a 32k vocabulary, a size has about as many parameters as its name promises."""
    assert low < count_parameters(model_config(ModelSpec(size=size), 32_000)) < high


def test_tiny_is_about_a_million_outside_the_embedding() -> None:
    """`tiny` is small enough to learn visibly on two CPU cores in two minutes."""
    assert 0.9e6 < count_body_parameters(model_config(ModelSpec(), 257)) < 1.5e6


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"heads": 5}, "model.heads"),
        ({"heads": 32}, "model.heads"),
        ({"kv_heads": 3}, "model.kv_heads"),
        ({"layers": 0}, "model.layers"),
        ({"layers": "two"}, "model.layers"),
        ({"layers": True}, "model.layers"),
        ({"tied_head": 1}, "model.tied_head"),
        ({"rope_theta": -1.0}, "model.rope_theta"),
        ({"colour": 3}, "model.colour"),
    ],
)
def test_a_wrong_configuration_names_its_field(change: dict[str, object], field: str) -> None:
    """Whoever sets a number that can't work reads which one."""
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
        parse_model_config({**SMALL, **change})


def test_a_missing_field_is_named() -> None:
    """A marker without a field is refused by that field's name."""
    with pytest.raises(ConfigError, match="ffn_dim"):
        parse_model_config({name: value for name, value in SMALL.items() if name != "ffn_dim"})


def test_an_unknown_size_lists_the_known_ones() -> None:
    """A typo in model.size is answered with what there is."""
    with pytest.raises(ConfigError) as caught:
        model_config(ModelSpec(size="huge"), 257)
    assert "tiny" in (caught.value.hint or "")


def test_an_integer_is_good_enough_for_a_float() -> None:
    """YAML's `rope_theta: 500000` means 500000.0."""
    assert parse_model_config({**SMALL, "rope_theta": 500_000}).rope_theta == 500_000


@given(st.integers(1, 200_000))
def test_padding_reaches_the_next_multiple_of_64(tokens: int) -> None:
    """No id is lost, and never more than 63 rows are added."""
    padded = padded_vocab(tokens)
    assert padded % 64 == 0
    assert 0 <= padded - tokens < 64
