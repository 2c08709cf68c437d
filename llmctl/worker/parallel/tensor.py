"""Tensor parallelism: each matrix split over the tp ranks, with the sequence split between the matrices.

Norms are not DTensors but plain modules on plain tensors: they need no communication, and the sums over tp
that their weights' gradients need (`sums.py`) are made once per step instead of once per use.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
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
        plan["embed"] = SplitVocabulary(between)
    for name in model.layers:
        plan |= _block_plan(f"layers.{name}", between)
    if model.head is not None:
        plan["head"] = ColwiseParallel()
    if model.part.scores:
        plan["to_logits"] = _gather(between, inputs=2)
    parallelize_module(model, mesh, plan)


class SplitVocabulary(ParallelStyle):
    """Each rank holds some rows of an embedding and looks up only those.

    Why not torch's RowwiseParallel: the gradient of its lookup has the size of the whole table on every
    rank, and travels as such.
    """

    def __init__(self, between: Placement) -> None:
        super().__init__()
        self._between = between

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Embedding)  # noqa: S101 - for the type checker
        module.weight = nn.Parameter(distribute_tensor(module.weight, device_mesh, [Shard(0)]))

        def look_up(input: Tensor) -> Tensor:
            weight = module.weight
            assert isinstance(weight, DTensor)  # noqa: S101 - for the type checker
            return self._look_up(input, weight, device_mesh)

        module.forward = look_up  # type: ignore[method-assign]
        return module

    def _look_up(self, tokens: Tensor, weight: DTensor, mesh: DeviceMesh) -> Tensor:
        rows = weight.to_local()
        own = tokens - mesh.get_local_rank() * rows.shape[0]
        elsewhere = (own < 0) | (own >= rows.shape[0])
        found = F.embedding(own.masked_fill(elsewhere, 0), rows).masked_fill(elsewhere.unsqueeze(-1), 0.0)
        parts = DTensor.from_local(found, mesh, [Partial()], run_check=False)
        whole: Tensor = parts.redistribute(placements=[self._between]).to_local()
        return whole


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
