"""The decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Layers lie in a ModuleDict under their global index, so that a pipeline stage that holds layers 8..15
has the same parameter names as the whole model, and one checkpoint fits every layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.worker.model.config import ModelConfig
from llmctl.worker.model.dropout import Noise, dropped, seed_of


@dataclass(slots=True, kw_only=True)
class KVCache:
    """Keys and values seen so far: per layer [batch, kv_heads, capacity, head_dim]; `length` are filled."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0

    @classmethod
    def empty(cls, config: ModelConfig, *, batch: int, capacity: int, like: Tensor) -> KVCache:
        """Room for `capacity` positions, on the device and in the dtype of `like`."""
        shape = (batch, config.kv_heads, capacity, config.head_dim)
        keys = [like.new_empty(shape) for _ in range(config.layers)]
        return cls(keys=keys, values=[torch.empty_like(key) for key in keys])

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new positions of one layer; returns all its keys and values up to and with them."""
        end = self.length + keys.shape[2]
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class Linear(nn.Linear):
    """Without values until `initialise` or a checkpoint gives them: drawing torch's own would be waste."""

    def reset_parameters(self) -> None:
        """Nothing."""


class Embedding(nn.Embedding):
    """As `Linear`. (On the meta device torch's own would also import torch._dynamo: a second.)"""

    def reset_parameters(self) -> None:
        """Nothing."""


def wide(x: Tensor) -> Tensor:
    """`x` in fp32; in fp64 where the model is, to tell rounding from mistakes."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last axis, computed in fp32 whatever the autocast dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        # The weight too: FSDP gathers a bf16 copy of it where the forward pass is bf16.
        return F.rms_norm(wide(x), self.weight.shape, wide(self.weight), self.eps)


def rope_rates(config: ModelConfig, device: torch.device | None) -> Tensor:
    """Radians per position of each pair of a head, [head_dim / 2], fp64."""
    steps = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float64) / config.head_dim
    rates: Tensor = config.rope_theta**-steps
    if config.rope_scaling == "none":
        return rates
    slow = rates / config.rope_factor
    if config.rope_scaling == "linear":
        return slow
    # Turns within the original context, as a share of the way from `rope_low` to `rope_high`.
    turns = config.rope_original * rates / (2 * math.pi)
    share = ((turns - config.rope_low) / (config.rope_high - config.rope_low)).clamp(0, 1)
    return slow * (1 - share) + rates * share


def rope_tables(positions: int, config: ModelConfig, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, each [positions, head_dim], the two halves alike."""
    rates = rope_rates(config, device)
    angles = torch.outer(torch.arange(positions, device=device, dtype=torch.float64), rates)
    doubled = torch.cat((angles, angles), dim=-1)
    return doubled.cos().float(), doubled.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + head_dim/2) of x [batch, heads, positions, head_dim] by its angle."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.q = Linear(config.dim, config.q_dim, bias=config.qkv_bias)
        self.k = Linear(config.dim, config.kv_dim, bias=config.qkv_bias)
        self.v = Linear(config.dim, config.kv_dim, bias=config.qkv_bias)
        self.out = Linear(config.q_dim, config.dim, bias=config.out_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        batch, length, _ = x.shape
        heads = (batch, length, -1, self.config.head_dim)
        q, k = self.q(x).view(heads), self.k(x).view(heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(q.dtype), self.k_norm(k).to(k.dtype)
        q = rotate(q.transpose(1, 2), cos, sin)
        k = rotate(k.transpose(1, 2), cos, sin)
        v = self.v(x).view(heads).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        mask = _mask(length, k.shape[2], self.config.window, x.device)
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None and length > 1,
            enable_gqa=self.config.kv_heads != self.config.heads,
        )
        joined: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        return joined


def _mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """Who sees whom, where several new positions follow a filled cache or a window hides the far past;
    None where SDPA needs no mask."""
    narrow = window is not None and keys > window
    if queries in (1, keys) and not narrow:
        return None
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return seen.triu(keys - queries - window + 1) if narrow and window is not None else seen


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Linear(config.dim, config.ffn_dim, bias=False)
        self.up = Linear(config.dim, config.ffn_dim, bias=False)
        self.down = Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        narrowed: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return narrowed


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and added to the residual stream.

    Attributes:
        recomputes: keep only the input in the forward pass and compute the rest again in the backward pass.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config)
        self.recomputes = False

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        layer: int = 0,
        noise: Noise | None = None,
    ) -> Tensor:
        if not (self.recomputes and torch.is_grad_enabled()):
            return self._layer(x, cos, sin, cache, layer, noise)
        # Imported here, because it brings torch._dynamo with it: a second of every start. No random state
        # is kept: what dropout draws is a function of the sample.
        from torch.utils.checkpoint import checkpoint

        again: Tensor = checkpoint(
            self._layer, x, cos, sin, cache, layer, noise, use_reentrant=False, preserve_rng_state=False
        )
        return again

    def _layer(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, layer: int, noise: Noise | None
    ) -> Tensor:
        x = x + dropped(self.attention(self.attention_norm(x), cos, sin, cache, layer), noise, layer, 0)
        out: Tensor = x + dropped(self.ffn(self.ffn_norm(x)), noise, layer, 1)
        return out


class ToLogits(nn.Module):
    """The product with the output matrix, which is the embedding's own where they are tied. A module, so that
    tensor parallelism has a place to hook on."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Layers `first` to `stop` (exclusive) of `layers`: the whole model, or a stage of a pipeline."""

    first: int
    stop: int
    layers: int

    @property
    def embeds(self) -> bool:
        """It begins with tokens, not with another stage's output."""
        return self.first == 0

    @property
    def scores(self) -> bool:
        """It ends with logits."""
        return self.stop == self.layers


class Decoder(nn.Module):
    """Tokens [batch, positions] -> logits [batch, positions, vocab_size]. Made by `make_decoder`.

    Attributes:
        part: what of the model is here; `keep_part` cuts the rest off.
        dropout, dropout_seed: rate and seed of the dropout in training.
        sequence_part: (index, parts) of the sequence that lies here between the matrices (sequence parallel).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.part = Part(first=0, stop=config.layers, layers=config.layers)
        self.dropout = 0.0
        self.dropout_seed = 0
        self.sequence_part = (0, 1)
        self.embed = Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleDict({str(index): Block(config) for index in range(config.layers)})
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = None if config.tied_head else Linear(config.dim, config.vocab_size, bias=False)
        self.to_logits = ToLogits()
        self._rope: tuple[Tensor, Tensor] | None = None

    def forward(self, tokens: Tensor, cache: KVCache | None = None, samples: Tensor | None = None) -> Tensor:
        """Logits, or the residual stream where a later stage goes on.

        Args:
            tokens: ids [batch, positions]; in a stage that does not embed, the residual stream before it.
            samples: each sample's position in the stream of all samples; with it, dropout is on.
        """
        start = cache.length if cache is not None else 0
        length = tokens.shape[1] * (1 if self.part.embeds else self.sequence_part[1])
        cos, sin = self._angles(start, start + length, tokens.device)
        noise = self._noise(samples)
        x = wide(self.embed(tokens)) if self.part.embeds else tokens
        for name, block in self.layers.items():
            x = block(x, cos, sin, cache, int(name), noise)
        if cache is not None:
            cache.length += length
        if not self.part.scores:
            return x
        logits: Tensor = self.to_logits(
            self.norm(x), self.embed.weight if self.head is None else self.head.weight
        )
        return logits

    def keep_part(self, part: Part) -> None:
        """Cut off all that the stage `part` does not need; names of what stays do not change."""
        self.part = part
        for index in range(part.layers):
            if not part.first <= index < part.stop:
                del self.layers[str(index)]
        if not part.scores:
            del self.norm, self.to_logits
            self.head = None
        if not (part.embeds or (part.scores and self.config.tied_head)):
            del self.embed

    def _noise(self, samples: Tensor | None) -> Noise | None:
        if samples is None or self.dropout == 0.0:
            return None
        part, parts = self.sequence_part
        return Noise(rate=self.dropout, seed=self.dropout_seed, samples=samples, part=part, parts=parts)

    def _angles(self, start: int, end: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows start..end of the rotary tables, which grow by doubling and are no part of a checkpoint."""
        if self._rope is None or self._rope[0].shape[0] < end or self._rope[0].device != device:
            room = max(256, 1 << (end - 1).bit_length())
            # Tables made while generating must also serve a later training step.
            with torch.inference_mode(mode=False):
                self._rope = rope_tables(room, self.config, device)
        cos, sin = self._rope
        return cos[start:end], sin[start:end]


def make_decoder(config: ModelConfig, device: torch.device) -> Decoder:
    """A decoder on `device` whose weights are still to be given: by `initialise` or from a checkpoint."""
    with device:
        return Decoder(config)


@torch.no_grad()
def initialise(model: Decoder, seed: int, *, learning_only: bool = False) -> None:
    """Random weights for every parameter of the model, or only for those that are not frozen."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not learning_only:
            first_values(name, parameter, model.config, seed)


@torch.no_grad()
def first_values(name: str, tensor: Tensor, config: ModelConfig, seed: int) -> None:
    """Random values for the whole parameter `name`: fan-in scaled, and smaller where a layer adds to the
    residual stream. They depend on seed and name alone, so a rank draws only what it holds and every layout
    begins with the same model."""
    if tensor.dim() < 2 or name.endswith(".lora_b"):
        tensor.fill_(0.0 if name.endswith((".bias", ".lora_b")) else 1.0)
        return
    generator = torch.Generator(device=tensor.device).manual_seed(seed_of(seed, name))
    std = 0.02 if name.startswith(("embed", "head")) else tensor.shape[1] ** -0.5
    if name.endswith(("attention.out.weight", "ffn.down.weight")):
        std *= (2 * config.layers) ** -0.5
    tensor.normal_(0.0, std, generator=generator)
