"""A stage of the model in torch's own operations: for fp32, for GPUs, and for hosts without a compiler.

The rows of a step are tokens of many requests, each with its slot and position; to a matrix they are a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.worker.infer.engine.plan import POSITION, SLOT, TOKEN
from llmctl.worker.infer.engine.weights import LayerWeights, StageWeights
from llmctl.worker.model.decoder import rope_tables, rotate

Reduce = Callable[[Tensor], object]
"""Sums a tensor over the ranks that share the matrices, in place."""


class Stage(Protocol):
    """The layers that one rank holds, and their cache."""

    def forward(self, rows: Tensor, x: Tensor | None) -> Tensor:
        """The residual stream behind this stage, fp32 [T, dim].

        Args:
            rows: `Step.rows`.
            x: the residual stream before it; None on the first stage, which begins with the tokens.
        """

    def final(self, x: Tensor) -> Tensor:
        """Rows of the residual stream behind the final norm, fp32; last stage only."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Of rows that `final` has made: this rank's share of the vocabulary, fp32 [rows, share]."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows start..stop of a step: several new positions of one slot, up to `end` (exclusive)."""

    slot: int
    start: int
    stop: int
    end: int


class _Attending:
    """How a step's rows see the cache: the same for every layer, so it is worked out once.

    Single new positions (decoding) are one batch with a mask; longer runs (prompts) go one by one.
    """

    def __init__(self, rows: Tensor, window: int | None) -> None:
        runs = _runs(rows)
        self.prompts = [run for run in runs if run.stop - run.start > 1]
        singles = [run for run in runs if run.stop - run.start == 1]
        self.singles = torch.tensor([run.start for run in singles], dtype=torch.int64, device=rows.device)
        self.slots = torch.tensor([run.slot for run in singles], dtype=torch.int64, device=rows.device)
        self.longest = max((run.end for run in singles), default=0)
        ends = torch.tensor([run.end for run in singles], device=rows.device).view(-1, 1)
        place = torch.arange(self.longest, device=rows.device)
        seen = place < ends
        if window is not None:
            seen &= place >= ends - window
        self.mask = seen[:, None, None, :]
        self.prompt_masks = [_prompt_mask(run, window, rows.device) for run in self.prompts]


def _prompt_mask(run: _Run, window: int | None, device: torch.device) -> Tensor:
    count = run.stop - run.start
    seen = torch.ones(count, run.end, dtype=torch.bool, device=device).tril(run.end - count)
    return seen if window is None else seen.triu(run.end - count - window + 1)


def _runs(rows: Tensor) -> list[_Run]:
    found: list[_Run] = []
    for index, (slot, position) in enumerate(rows[:, (SLOT, POSITION)].tolist()):
        last = found[-1] if found else None
        if last is not None and last.slot == slot and last.end == position:
            found[-1] = _Run(slot, last.start, index + 1, position + 1)
        else:
            found.append(_Run(slot, index, index + 1, position + 1))
    return found


class TorchStage:
    """See Stage.

    Args:
        reduce: None where no other rank shares the matrices.
        slots, length: size of the cache.
    """

    def __init__(self, weights: StageWeights, *, slots: int, length: int, reduce: Reduce | None) -> None:
        self._weights = weights
        self._reduce = reduce
        some = weights.layers[0].qkv
        shape = (len(weights.layers), slots, weights.kv_heads, length, weights.config.head_dim)
        # Zeros: a short request beside a long one reads on behind its end, with weight 0, and 0 * NaN is NaN.
        self._keys, self._values = some.new_zeros(shape), some.new_zeros(shape)
        self._cos, self._sin = rope_tables(length, weights.config, some.device)

    @torch.inference_mode()
    def forward(self, rows: Tensor, x: Tensor | None) -> Tensor:
        """See Stage."""
        if x is None:
            x = self._embed(rows[:, TOKEN])
        attending = _Attending(rows, self._weights.config.window)
        positions = rows[:, POSITION]
        angles = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)
        for index, layer in enumerate(self._weights.layers):
            x = x + self._attention(index, layer, x, rows, angles, attending)
            x = x + self._ffn(layer, x)
        return x

    @torch.inference_mode()
    def final(self, x: Tensor) -> Tensor:
        """See Stage."""
        assert self._weights.norm is not None  # noqa: S101 - for the type checker
        return self._norm(x, self._weights.norm)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """See Stage."""
        assert self._weights.head is not None  # noqa: S101 - for the type checker
        return F.linear(hidden.to(self._weights.head.dtype), self._weights.head).float()

    def _embed(self, tokens: Tensor) -> Tensor:
        embed = self._weights.embed
        assert embed is not None  # noqa: S101 - for the type checker
        if self._reduce is None:
            return F.embedding(tokens, embed).float()
        own = tokens - self._weights.portion.vocab[0]
        elsewhere = (own < 0) | (own >= embed.shape[0])
        found = F.embedding(own.masked_fill(elsewhere, 0), embed).float()
        return self._summed(found.masked_fill(elsewhere.unsqueeze(-1), 0.0))

    def _summed(self, part: Tensor) -> Tensor:
        if self._reduce is not None:
            self._reduce(part)
        return part

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._weights.config.norm_eps)

    def _ffn(self, layer: LayerWeights, x: Tensor) -> Tensor:
        inner = F.linear(self._norm(x, layer.ffn_norm).to(layer.gate_up.dtype), layer.gate_up)
        gate, up = inner.chunk(2, dim=-1)
        return self._summed(F.linear(F.silu(gate) * up, layer.down).float())

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        x: Tensor,
        rows: Tensor,
        angles: tuple[Tensor, Tensor],
        attending: _Attending,
    ) -> Tensor:
        own = self._weights
        fused = F.linear(self._norm(x, layer.attention_norm).to(layer.qkv.dtype), layer.qkv)
        if layer.qkv_bias is not None:
            fused = fused + layer.qkv_bias.to(fused.dtype)
        heads = fused.view(len(x), -1, own.config.head_dim)
        q, k, v = torch.split(heads, [own.heads, own.kv_heads, own.kv_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = self._norm(q.float(), layer.q_norm).to(fused.dtype)
            k = self._norm(k.float(), layer.k_norm).to(fused.dtype)
        q, k = rotate(q, *angles), rotate(k, *angles)
        self._keys[index][rows[:, SLOT], :, rows[:, POSITION]] = k
        self._values[index][rows[:, SLOT], :, rows[:, POSITION]] = v
        mixed = self._attend(index, q, attending)
        out = F.linear(mixed.flatten(1), layer.out).float()
        if layer.out_bias is not None:
            out = out + layer.out_bias
        return self._summed(out)

    def _attend(self, index: int, q: Tensor, attending: _Attending) -> Tensor:
        """q [T, heads, head_dim] over the cache of this layer; the same shape."""
        gqa = self._weights.heads != self._weights.kv_heads
        keys, values = self._keys[index], self._values[index]
        mixed = torch.empty_like(q)
        if len(attending.singles):
            k, v = (cache[attending.slots, :, : attending.longest] for cache in (keys, values))
            one = q[attending.singles].unsqueeze(2)
            seen = F.scaled_dot_product_attention(one, k, v, attn_mask=attending.mask, enable_gqa=gqa)
            mixed[attending.singles] = seen.squeeze(2)
        for run, mask in zip(attending.prompts, attending.prompt_masks, strict=True):
            many = q[run.start : run.stop].transpose(0, 1).unsqueeze(0)
            k, v = (cache[run.slot : run.slot + 1, :, : run.end] for cache in (keys, values))
            seen = F.scaled_dot_product_attention(many, k, v, attn_mask=mask, enable_gqa=gqa)
            mixed[run.start : run.stop] = seen[0].transpose(0, 1)
        return mixed
