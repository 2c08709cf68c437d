"""Text from a model: one token at a time, with the keys and values of earlier ones kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmctl.errors import ConfigError
from llmctl.worker.model.decoder import Decoder, KVCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen; `temperature` 0: always the likeliest, whatever the seed."""

    max_new: int = 100
    temperature: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new < 1:
            raise ConfigError(f"max-new: must be at least 1, not {self.max_new}")
        if self.temperature < 0:
            raise ConfigError(f"temperature: must not be negative, not {self.temperature}")


def generate(
    model: Decoder, prompt: Sequence[int], sampling: Sampling, *, vocab_size: int, eos: int
) -> Iterator[int]:
    """New token ids after `prompt`, until `eos` or `max_new`.

    Args:
        prompt: at least one id.
        vocab_size: ids at or above it are padding of the embedding and never chosen.
    """
    device = model.embed.weight.device
    generator = torch.Generator(device=device).manual_seed(sampling.seed)
    capacity = len(prompt) + sampling.max_new
    cache = KVCache.empty(model.config, batch=1, capacity=capacity, like=model.embed.weight.detach())
    tokens = torch.tensor([list(prompt)], device=device)
    for _ in range(sampling.max_new):
        with torch.inference_mode():
            logits = model(tokens, cache)[0, -1, :vocab_size]
            tokens = _choose(logits, sampling.temperature, generator).view(1, 1)
        token = int(tokens)
        if token == eos:
            return
        yield token


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One id, as a tensor of shape [1]."""
    if temperature == 0:
        return logits.argmax(keepdim=True)
    return torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=generator)
