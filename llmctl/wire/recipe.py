"""Settings of the built-in recipe: made by the planner, read by the workers, one value for all ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from llmctl.wire.parallel import ParallelSpec


@dataclass(frozen=True)
class ModelSpec:
    """A Llama-style decoder; `wire/model.py` knows what each size name means.

    Attributes:
        size: `tiny` ... `7b`, the base of the configuration.
        overrides: fields of ModelConfig that differ from the base, such as `{"layers": 4}`.
        source: where the first weights and the shape come from: a Hugging Face folder or a checkpoint of
            ours, readable on every host; None: random weights of shape `size` and `overrides`.
    """

    size: str = "tiny"
    overrides: dict[str, Any] = field(default_factory=dict)
    source: Optional[str] = None


LORA_TARGETS = ("q", "k", "v", "out", "gate", "up", "down")
"""The matrices of a decoder layer, as `lora.targets` names them."""


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters: `W x + alpha / rank * B A x`, where only A and B learn (arXiv 2106.09685).

    Attributes:
        rank: rows of A, columns of B.
        alpha: scale of what is added, times the rank.
        targets: which matrices of each layer get one; of LORA_TARGETS.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = LORA_TARGETS

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class OptimizerSpec:
    """AdamW with a cosine schedule; `lr` is the peak, `min_lr_ratio` what is left of it at the end."""

    lr: float = 3e-4
    min_lr_ratio: float = 0.1
    warmup_steps: int = 20
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.1
    eps: float = 1e-8
    clip_norm: float = 1.0


@dataclass(frozen=True)
class RecipeSpec:
    """One training run of the built-in recipe.

    Attributes:
        steps: optimizer steps in all, those before a resume included.
        global_batch: samples per step over all ranks; the loss curve depends on it, never on world size.
        micro_batch: samples per forward pass and rank; smaller means gradient accumulation.
        sequence_length: tokens per sample.
        precision: `auto` (bf16 autocast where it helps), `bf16` or `fp32`.
        checkpoint_every: steps between checkpoints; 0: only at the end.
        keep: committed checkpoints that stay; older ones are removed after a newer one is committed.
        keep_every: steps whose multiples stay for good; 0: none.
        checkpoint_async: training stands still only while the state is copied to host memory.
        checkpoint_on_failure: `warn`: training goes on without that checkpoint; `stop`: the job fails.
        verify_upload: read every byte of a checkpoint back from a remote store before it is committed.
        resume: continue from the last committed checkpoint where there is one.
        log_every: steps between human-readable log lines; metrics are written at every step.
        parallel: how the ranks share the work; None: each holds the whole model.
        aggregation: what the loss is a mean of: `tokens` (of the global batch), `samples` (each sample's own
            mean counts alike) or `mean` (each data rank's own mean counts alike, as in plain DDP).
        activation_checkpointing: what the backward pass computes again instead of keeping it: `none`,
            `full` (every block), `selective` (every second block).
        compile: torch.compile for each block.
        dropout: share of what each sublayer adds to the residual stream that is dropped in training.
        on_bad_loss: `stop`, or `skip` the update, where a loss is no number or above the spike threshold.
        spike_threshold: a loss this many times the running mean is a bad one; None: only what is no number.
        lora: train adapters of `model.source` and nothing else; checkpoints hold only them.
        self_check: before the first step, compare the layout's gradient with one process's.
        shares: samples of each data rank in a step, of the global batch; none: equal ones.
        planned_memory: bytes that the planner expects of the rank that needs most; None: it does not know.
    """

    steps: int = 200
    global_batch: int = 16
    micro_batch: int = 8
    sequence_length: int = 256
    seed: int = 0
    precision: str = "auto"
    model: ModelSpec = field(default_factory=ModelSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    checkpoint_every: int = 100
    keep: int = 3
    keep_every: int = 0
    checkpoint_async: bool = True
    checkpoint_on_failure: str = "warn"
    verify_upload: bool = True
    resume: bool = True
    log_every: int = 10
    threads: Optional[int] = None
    tensorboard: bool = True
    parallel: Optional[ParallelSpec] = None
    aggregation: str = "tokens"
    activation_checkpointing: str = "none"
    compile: bool = False
    dropout: float = 0.0
    on_bad_loss: str = "stop"
    spike_threshold: Optional[float] = None
    self_check: bool = False
    lora: Optional[LoraSpec] = None
    shares: tuple[int, ...] = ()
    planned_memory: Optional[int] = None
