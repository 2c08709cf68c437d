"""The check before serving: the replica's logits against those of one plain process.

The reference is the decoder that training uses, in fp32, one layer in memory at a time, so that it fits
wherever the replica does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.errors import IntegrityError
from llmctl.wire.infer import HandoffCheck
from llmctl.worker.hf.names import EMBED, HEAD
from llmctl.worker.hf.weights import Weights
from llmctl.worker.infer.engine.pipeline import Pipeline
from llmctl.worker.infer.engine.plan import SCORE, make_step
from llmctl.worker.model.config import ModelConfig
from llmctl.worker.model.decoder import Block, RMSNorm, rope_tables

PROMPTS = 3
LENGTH = 24

LIMITS = {"fp32": 1e-4, "bf16": 0.25}
"""Largest difference of log-probabilities that is no mistake; with bf16 weights the reference has them, too,
so what differs is the rounding of activations."""


def check_handoff(
    weights: Weights, pipeline: Pipeline, *, dtype: str, length: int, slots: int, rows: int
) -> HandoffCheck:
    """Compare log-probabilities on a few prompts; rank 0 calls it before anything else runs.

    Raises:
        IntegrityError: the replica is not the model.
    """
    prompts = check_prompts(weights.config, min(LENGTH, length, max(2, rows)), min(PROMPTS, slots))
    wanted = reference(weights, prompts, dtype=dtype)
    worst, agreed, total = 0.0, 0, 0
    for slot, (prompt, logits) in enumerate(zip(prompts, wanted, strict=True)):
        chances = torch.log_softmax(logits, dim=-1)
        best = logits.argmax(dim=-1)
        values = _replica(pipeline, prompt.tolist(), best.tolist(), slot)
        own = values[:, 1].float()
        worst = max(worst, float((own - chances.gather(1, best.unsqueeze(1)).squeeze(1)).abs().max()))
        agreed += int((values[:, 2] == best).sum())
        total += len(best)
    limit = LIMITS[dtype]
    if not worst <= limit:
        raise IntegrityError(
            f"the handoff check failed: log-probabilities differ by {worst:.3g} from one process's, "
            f"{limit:g} is allowed",
            hint="try another layout; if one process fails too, the weights are not what they should be",
            stage="check",
        )
    return HandoffCheck(
        difference=worst, limit=limit, agree=agreed / total, prompts=len(prompts), tokens=total
    )


def check_prompts(config: ModelConfig, length: int, count: int) -> list[Tensor]:
    """Always the same ids, of different lengths."""
    generator = torch.Generator().manual_seed(11)
    lengths = [max(1, length - 5 * index) for index in range(count)]
    return [torch.randint(0, config.vocab_size, (size,), generator=generator) for size in lengths]


def _replica(pipeline: Pipeline, prompt: list[int], targets: list[int], slot: int) -> Tensor:
    """Per position: (target, its log-probability, the likeliest token, that one's); the prompt goes in in two
    parts, so that the cache is looked at, too."""
    values: list[Tensor] = []
    half = max(1, len(prompt) // 2)
    for first, stop in ((0, half), (half, len(prompt))):
        if first == stop:
            continue
        rows = [(prompt[position], slot, position) for position in range(first, stop)]
        outputs = [(index, SCORE, targets[first + index], 0, 1) for index in range(stop - first)]
        numbers = [(0.0, 1.0, 0.0, 1.0)] * len(rows)
        values.append(pipeline.start(make_step(0, rows, outputs, numbers))().values)
    return torch.cat(values)


@torch.no_grad()
def reference(weights: Weights, prompts: list[Tensor], *, dtype: str = "fp32") -> list[Tensor]:
    """Logits [length, vocab] of each prompt, fp32, by one process.

    Args:
        dtype: of the stored weights; the arithmetic is always fp32.
    """
    config = weights.config
    embed = _read(weights, [EMBED], dtype)[EMBED]
    states = [F.embedding(prompt, embed).unsqueeze(0) for prompt in prompts]
    cos, sin = rope_tables(max(len(prompt) for prompt in prompts), config, None)
    for index in range(config.layers):
        block = _block(weights, index, dtype)
        states = [block(x, cos[: x.shape[1]], sin[: x.shape[1]]) for x in states]
    norm = RMSNorm(config.dim, config.norm_eps)
    norm.weight.copy_(_read(weights, ["norm.weight"], "fp32")["norm.weight"])
    head = embed if config.tied_head else _read(weights, [HEAD], dtype)[HEAD]
    return [F.linear(norm(x[0]), head) for x in states]


def _block(weights: Weights, index: int, dtype: str) -> Block:
    block = Block(weights.config).requires_grad_(False).eval()
    named = {f"layers.{index}.{name}": parameter for name, parameter in block.named_parameters()}
    for name, tensor in _read(weights, list(named), dtype).items():
        named[name].copy_(tensor)
    return block


def _read(weights: Weights, names: list[str], dtype: str) -> dict[str, Tensor]:
    """Matrices as the replica stores them; vectors are fp32 there, too."""
    found = {}
    for name, tensor in weights.items(names):
        stored = tensor.bfloat16() if dtype == "bf16" and tensor.dim() > 1 else tensor
        found[name] = stored.float()
    return found
