"""From a ReplicaSpec to a rank that can work: its share of the weights, its cache, its sampler."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmctl.errors import ConfigError, PreflightError
from llmctl.wire.infer import ReplicaSpec
from llmctl.worker.hf.weights import Weights
from llmctl.worker.infer.engine.links import Links
from llmctl.worker.infer.engine.native import NativeStage, fits
from llmctl.worker.infer.engine.pipeline import Rank
from llmctl.worker.infer.engine.place import Place
from llmctl.worker.infer.engine.sampler import Sampler
from llmctl.worker.infer.engine.scheduler import Limits
from llmctl.worker.infer.engine.stage import Reduce, Stage, TorchStage
from llmctl.worker.infer.engine.weights import DTYPES, StageWeights, load_stage
from llmctl.worker.model.config import ModelConfig

KERNELS = ("auto", "native", "torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A rank, and what its matrices are computed by: `native` or `torch`."""

    rank: Rank
    kernels: str


def check_spec(spec: ReplicaSpec) -> None:
    """Refuse what means nothing.

    Raises:
        ConfigError: names the field.
    """
    for name in ("tp", "pp", "max_batch", "chunk", "nproc"):
        if getattr(spec, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(spec, name)}", stage="replica")
    if spec.max_length < 2:
        raise ConfigError(f"max_length must be at least 2, not {spec.max_length}", stage="replica")
    for name, known in (("dtype", tuple(DTYPES)), ("kernels", KERNELS), ("device", ("auto", "cpu"))):
        if getattr(spec, name) not in known:
            told = f"{name} {getattr(spec, name)!r} is not one of {', '.join(known)}"
            raise ConfigError(told, stage="replica")


def limits_of(spec: ReplicaSpec, config: ModelConfig) -> Limits:
    """Sizes of the scheduler; a pipeline has as many micro-batches on their way as stages."""
    return Limits(
        slots=spec.max_batch,
        length=spec.max_length,
        chunk=spec.chunk,
        waiting=spec.max_waiting,
        vocab=config.vocab_size,
        groups=min(spec.pp, spec.max_batch),
    )


def max_rows(spec: ReplicaSpec) -> int:
    """Most rows of a step: a chunk of prompts, and every other request one token further."""
    return spec.chunk + spec.max_batch


def build_rank(
    spec: ReplicaSpec, weights: Weights, place: Place, device: torch.device, links: Links | None
) -> Built:
    """This rank of the replica.

    Raises:
        ConfigError: the model can't be shared that way. IntegrityError: its files are damaged.
    """
    dtype = DTYPES[spec.dtype]
    mine = load_stage(weights, place, dtype, device)
    reduce = links.reduce if links is not None and place.tp > 1 else None
    stage, kernels = _stage(spec, mine, reduce, device)
    config = weights.config
    sampler = Sampler(slots=spec.max_batch, vocab=config.vocab_size, dim=config.dim, device=device)
    rank = Rank(config=config, place=place, stage=stage, sampler=sampler, device=device, links=links)
    return Built(rank=rank, kernels=kernels)


def _stage(
    spec: ReplicaSpec, mine: StageWeights, reduce: Reduce | None, device: torch.device
) -> tuple[Stage, str]:
    """The native kernels where they can be had; `kernels: native` insists on them."""

    size = {"slots": spec.max_batch, "length": spec.max_length}
    if spec.kernels != "torch":
        reason = fits(mine, device)
        try:
            if reason is None:
                threads = spec.threads or torch.get_num_threads()
                stage = NativeStage(mine, max_rows=max_rows(spec), threads=threads, reduce=reduce, **size)
                return stage, "native"
        except PreflightError as error:
            reason = error.message
        if spec.kernels == "native":
            raise PreflightError(reason, hint="set kernels: torch", stage="kernels")
    return TorchStage(mine, reduce=reduce, **size), "torch"
