"""Low-rank adapters: which matrices get one, how they compute, and how they become part of their matrix.

W stays as it is and learns nothing: no gradient, no moments, no place in a checkpoint. Beside it stand
A [rank, in] and B [out, rank], and the layer computes W x + alpha / rank * B A x (arXiv 2106.09685, section
4.1). B begins as zeros, so that training begins with the base model's own output.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.errors import ConfigError
from llmctl.wire.recipe import LORA_TARGETS, LoraSpec
from llmctl.worker.model.decoder import Decoder, Linear

A = "lora_a"
B = "lora_b"
_TARGET = re.compile(r"layers\.\d+\.(?:attention|ffn)\.([a-z]+)")


class LoraLinear(Linear):
    """A linear layer with an adapter beside its frozen weight."""

    def __init__(self, base: nn.Linear, spec: LoraSpec) -> None:
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features, bias=False)
        self.weight, self.bias = base.weight, base.bias
        self.scale = spec.scale
        self.lora_a = nn.Parameter(self.weight.new_empty(spec.rank, base.in_features))
        self.lora_b = nn.Parameter(self.weight.new_empty(base.out_features, spec.rank))

    def forward(self, input: Tensor) -> Tensor:
        base = F.linear(input, self.weight, self.bias)
        return base + F.linear(F.linear(input, self.lora_a), self.lora_b) * self.scale


def add_adapters(model: Decoder, spec: LoraSpec) -> None:
    """Freeze `model` and give the targeted matrices adapters, whose values are still to be given.

    Raises:
        ConfigError: a target that no layer has, or a rank as wide as the matrix itself.
    """
    check(spec)
    model.requires_grad_(False)
    for name, layer in list(model.named_modules()):
        found = _TARGET.fullmatch(name)
        if found is None or found[1] not in spec.targets or not isinstance(layer, nn.Linear):
            continue
        if spec.rank >= min(layer.weight.shape):
            raise ConfigError(
                f"lora.rank {spec.rank} is no less than the {tuple(layer.weight.shape)} of {name} itself",
                stage="model",
            )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoraLinear(layer, spec))


def check(spec: LoraSpec) -> None:
    """Refuse what can't be an adapter.

    Raises:
        ConfigError: names the field.
    """
    unknown = [target for target in spec.targets if target not in LORA_TARGETS]
    if unknown or not spec.targets:
        told = f"no matrix {', '.join(unknown)}" if unknown else "empty"
        raise ConfigError(f"lora.targets: {told}; there are {', '.join(LORA_TARGETS)}", stage="model")
    if spec.rank < 1 or spec.alpha <= 0:
        raise ConfigError(f"lora: rank {spec.rank} and alpha {spec.alpha} must be above 0", stage="model")


def is_adapter(name: str) -> bool:
    """Whether a parameter is part of an adapter."""
    return name.endswith((f".{A}", f".{B}"))


def adapter_shapes(shapes: dict[str, tuple[int, ...]], spec: LoraSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every adapter parameter over a model whose parameters have `shapes`."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        target = _TARGET.fullmatch(layer)
        if kind == "weight" and target is not None and target[1] in spec.targets:
            found[f"{layer}.{A}"] = (spec.rank, shape[1])
            found[f"{layer}.{B}"] = (shape[0], spec.rank)
    return found


def merged(
    items: Iterable[tuple[str, Tensor]], adapters: Callable[[str], Tensor | None], spec: LoraSpec
) -> Iterator[tuple[str, Tensor]]:
    """`items` with each adapter added to its matrix, in fp32: one model, as fast as the base.

    Args:
        adapters: an adapter's tensor by parameter name; None where that matrix has none.
    """
    for name, tensor in items:
        layer = name.removesuffix(".weight")
        a, b = adapters(f"{layer}.{A}"), adapters(f"{layer}.{B}")
        if a is None or b is None:
            yield name, tensor
        else:
            yield name, torch.addmm(tensor.float(), b.float(), a.float(), alpha=spec.scale)
