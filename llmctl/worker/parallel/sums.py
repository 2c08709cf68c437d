"""Gradient sums of a mesh, and the norm of a gradient that lies in shards.

FSDP has summed its shards over dp_shard and dp_replicate by itself when the backward pass ends. What is left:
sums over dp_replicate where nothing is sharded by FSDP, over tp for parameters of which each tp rank has
seen a part only, and over the two ends of a pipeline for an embedding that is also the head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from llmctl.wire.parallel import ParallelSpec
from llmctl.worker.optim import local
from llmctl.worker.parallel.replicas import ReplicaGradients

TIED = "embed.weight"


class MeshGradients:
    """See `worker.step.Gradients`.

    Args:
        named: this rank's parameters by the full model's names.
        tied: group of the two ranks that share a tied embedding; None where it is not shared.
        is_partial: whether each tp rank has only its share of the gradient of the plain parameter so named.
    """

    def __init__(
        self,
        named: dict[str, nn.Parameter],
        mesh: DeviceMesh,
        spec: ParallelSpec,
        tied: dist.ProcessGroup | None,
        is_partial: Callable[[str], bool],
    ) -> None:
        self._mesh = mesh
        self._spec = spec
        self._named = {name: p for name, p in named.items() if p.requires_grad}
        self._partial = [
            p for name, p in self._named.items() if spec.tp > 1 and _is_plain_on(p, "tp") and is_partial(name)
        ]
        self._tied_group = tied
        self._tied = self._named.get(TIED) if tied is not None else None
        self._norms = _Norms(self._named, mesh, spec, counted_elsewhere=self._is_second_copy)
        # With FSDP on a 2-D mesh the sum over dp_replicate is FSDP's own.
        own = spec.dp_replicate > 1 and spec.dp_shard == 1
        self._replicas = ReplicaGradients(
            self._named.values(),
            world=spec.dp_replicate if own else 1,
            group=mesh.get_group("dp_replicate") if own else None,
        )

    @property
    def _is_second_copy(self) -> bool:
        """This rank's embedding is the last stage's copy of the first one's."""
        return self._tied is not None and self._mesh.get_local_rank("pp") > 0

    def clear(self) -> None:
        self._replicas.clear()

    def expect_last(self) -> None:
        self._replicas.expect_last()

    def send_rest(self) -> None:
        self._replicas.send_rest()

    @torch.no_grad()
    def wait(self) -> Tensor:
        """See Gradients."""
        self._replicas.finish()
        for parameter in self._named.values():
            _settle(parameter)
        if self._partial:
            _sum_together([local(_grad(p)) for p in self._partial], self._mesh.get_group("tp"))
        if self._tied is not None:
            dist.all_reduce(local(_grad(self._tied)), group=self._tied_group)
        return self._norms.norm()


class _Norms:
    """Sums of squares by the mesh dimensions over which a parameter is sharded: only over those may they be
    added, or what is held twice would count twice."""

    def __init__(
        self,
        named: dict[str, nn.Parameter],
        mesh: DeviceMesh,
        spec: ParallelSpec,
        *,
        counted_elsewhere: bool,
    ) -> None:
        self._mesh = mesh
        self._pipelined = spec.pp > 1
        self._dims = [dim for dim in ("tp", "dp_shard") if getattr(spec, dim) > 1]
        # The same classes on every rank, whether it has parameters of each or not.
        self._classes = [frozenset(chosen) for chosen in _subsets(self._dims)]
        self._params: dict[frozenset[str], list[nn.Parameter]] = {kind: [] for kind in self._classes}
        for name, parameter in named.items():
            if not (counted_elsewhere and name == TIED):
                self._params[sharded_over(parameter) & frozenset(self._dims)].append(parameter)

    def norm(self) -> Tensor:
        """The norm of the whole model's gradient."""
        squares = torch.stack([_square_sum(self._params[kind], self._mesh) for kind in self._classes])
        for dim in self._dims:
            chosen = [index for index, kind in enumerate(self._classes) if dim in kind]
            part = squares[chosen]
            dist.all_reduce(part, group=self._mesh.get_group(dim))
            squares[chosen] = part
        total = squares.sum()
        if self._pipelined:
            dist.all_reduce(total, group=self._mesh.get_group("pp"))
        return total.sqrt()


def _subsets(dims: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for dim in dims:
        found += [[*chosen, dim] for chosen in found]
    return found


def sharded_over(parameter: Tensor) -> frozenset[str]:
    """Names of the mesh dimensions over which the ranks hold different parts of `parameter`."""
    if not isinstance(parameter, DTensor):
        return frozenset()
    names = parameter.device_mesh.mesh_dim_names or ()
    pairs = zip(names, parameter.placements, strict=True)
    # Not `is_shard()`: it is False for the strided shards of FSDP over tp.
    return frozenset(name for name, placement in pairs if not placement.is_replicate())


def _is_plain_on(parameter: Tensor, dim: str) -> bool:
    """Whether torch's DTensor knows nothing of this parameter along `dim`."""
    return not isinstance(parameter, DTensor) or dim not in (parameter.device_mesh.mesh_dim_names or ())


def _settle(parameter: nn.Parameter) -> None:
    """Give a parameter that no sample has touched a gradient of zeros, and a DTensor's gradient the
    parameter's own placements: DTensor may leave it in parts that are still to be added."""
    grad = parameter.grad
    if grad is None:
        parameter.grad = torch.zeros_like(parameter)
        return
    if not (isinstance(grad, DTensor) and isinstance(parameter, DTensor)):
        return
    if grad.placements != parameter.placements:
        parameter.grad = grad.redistribute(placements=parameter.placements)


def _grad(parameter: nn.Parameter) -> Tensor:
    grad = parameter.grad
    assert grad is not None  # noqa: S101 - for the type checker
    return grad


def _square_sum(params: list[nn.Parameter], mesh: DeviceMesh) -> Tensor:
    held = [grad for grad in (local(_grad(p)) for p in params) if grad.numel()]
    if not held:
        return torch.zeros((), device=mesh.device_type)
    return torch.stack(torch._foreach_norm(held)).square().sum()


def _sum_together(tensors: list[Tensor], group: dist.ProcessGroup) -> None:
    """Sum each tensor over `group` in place, all of them in one message."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
