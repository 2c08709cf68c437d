"""Tensor parallelism: each matrix split over the tp ranks, with the sequence split between the matrices.

Norms are not DTensors but plain modules on plain tensors: they need no communication, and the sums over tp
that their weights' gradients need (`sums.py`) are made once per step instead of once per use.
"""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import Placement

from llmctl.wire.parallel import ParallelSpec
from llmctl.worker.model.decoder import Decoder

ATTENTION_INPUTS = 5
"""Positional arguments of Attention: only the first is split."""


def split_matrices(model: Decoder, mesh: DeviceMesh, spec: ParallelSpec) -> None:
    """Split the matrices of `model` over `mesh`, in place: parameters become DTensors.

    Between the matrices lie plain tensors [batch, positions, dim]: with sequence_parallel this rank's
    positions, else all of them.
    """
    between: Placement = Shard(1) if spec.sequence_parallel else Replicate()
    plan: dict[str, ParallelStyle] = {}
    if hasattr(model, "embed"):
        plan["embed"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=between)
    for name in model.layers:
        plan |= _block_plan(f"layers.{name}", between)
    if model.head is not None:
        plan["head"] = ColwiseParallel()
    if model.part.scores:
        plan["to_logits"] = _gather(between, inputs=2)
    parallelize_module(model, mesh, plan)


def _block_plan(block: str, between: Placement) -> dict[str, ParallelStyle]:
    plan: dict[str, ParallelStyle] = {
        f"{block}.attention": _gather(between, inputs=ATTENTION_INPUTS),
        f"{block}.attention.out": RowwiseParallel(output_layouts=between),
        f"{block}.ffn": _gather(between, inputs=1),
        f"{block}.ffn.down": RowwiseParallel(output_layouts=between),
    }
    for name in ("attention.q", "attention.k", "attention.v", "ffn.gate", "ffn.up"):
        plan[f"{block}.{name}"] = ColwiseParallel()
    return plan


def _gather(between: Placement, *, inputs: int) -> PrepareModuleInput:
    """The first of a module's inputs becomes whole, the others stay what they are."""
    rest = (None,) * (inputs - 1)
    return PrepareModuleInput(input_layouts=(between, *rest), desired_input_layouts=(Replicate(), *rest))


def is_partial(name: str, spec: ParallelSpec) -> bool:
    """Whether each tp rank has only its own share of the gradient of the plain parameter `name`: norms of
    single heads see their rank's heads, all other norms their rank's positions."""
    if spec.tp == 1:
        return False
    return spec.sequence_parallel or name.endswith(("q_norm.weight", "k_norm.weight"))
