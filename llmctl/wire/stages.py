"""How a model's shape and a mesh go together: whether they fit, and where a pipeline cuts. Pure, because the
planner refuses and estimates what the worker builds."""

from __future__ import annotations

from typing import Optional

from llmctl.wire.model import ModelConfig
from llmctl.wire.parallel import ParallelSpec


def misfit(spec: ParallelSpec, config: ModelConfig, sequence_length: int) -> Optional[str]:
    """Why this model can't be cut that way; None where it can."""
    for name in ("heads", "kv_heads", "ffn_dim", "vocab_size"):
        size = getattr(config, name)
        if size % spec.tp:
            return f"tp {spec.tp} does not divide {name} {size}"
    if spec.sequence_parallel and sequence_length % spec.tp:
        return f"sequence_parallel: tp {spec.tp} does not divide sequence_length {sequence_length}"
    if config.layers < spec.stages:
        return f"{spec.stages} pipeline stages for {config.layers} layers"
    return None


def pipeline_cuts(config: ModelConfig, stages: int, sequence_length: int) -> tuple[tuple[int, int], ...]:
    """(first, stop) of each stage's layers, so that the slowest stage is as fast as it can be.

    The last stage also computes the logits, so it gets fewer layers; a lookup in the embedding costs next to
    nothing. Where layers do not divide evenly, later stages get more: earlier ones hold more activations.

    Args:
        stages: at most as many as there are layers.
    """
    block = block_flops(config, sequence_length)
    head = 2 * config.vocab_size * config.dim
    if stages == 1:
        return ((0, config.layers),)

    def slowest(last: int) -> int:
        others = -(-(config.layers - last) // (stages - 1))
        return max(last * block + head, others * block)

    last = min(range(1, config.layers - stages + 2), key=lambda count: (slowest(count), -count))
    rest = config.layers - last
    firsts = [index * rest // (stages - 1) for index in range(stages)]
    return (*zip(firsts, firsts[1:]), (rest, config.layers))


def block_flops(config: ModelConfig, sequence_length: int) -> int:
    """Floating-point operations of one layer's forward pass per token; causal attention sees half of the
    sequence on average."""
    kv_dim = config.head_dim * config.kv_heads
    q_dim = config.head_dim * config.heads
    matrices = 2 * config.dim * (2 * q_dim + 2 * kv_dim + 3 * config.ffn_dim)
    return matrices + 2 * q_dim * sequence_length
