"""Settings of the built-in recipe: made by the planner, read by the workers, one value for all ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional


@dataclass(frozen=True)
class ModelSpec:
    """A Llama-style decoder; `wire/model.py` knows what each size name means.

    Attributes:
        size: `tiny` ... `7b`, the base of the configuration.
        overrides: fields of ModelConfig that differ from the base, such as `{"layers": 4}`.
    """

    size: str = "tiny"
    overrides: dict[str, Any] = field(default_factory=dict)


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
