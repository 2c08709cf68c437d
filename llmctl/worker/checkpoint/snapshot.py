"""The state as it was at one step, in host memory: the only part of a save that training has to wait for.

Ranks that hold the same tensors share the work: each copies and writes only its own part, so that all ranks
of a checkpoint together hold one copy of the state, and training stands still for a part of the copying.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def own_share(tensors: Mapping[str, Tensor], index: int, count: int) -> dict[str, Tensor]:
    """The part of replicated `tensors` that member `index` of `count` saves; all parts together are all.

    Every member computes the same shares from names and sizes alone: largest first, to whom has least.
    """
    loads = [0] * count
    mine = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        owner = loads.index(min(loads))
        loads[owner] += tensor.nbytes
        if owner == index:
            mine[name] = tensor
    return mine


def local_part(tensor: Tensor) -> Tensor:
    """What of a tensor lies on this rank: the tensor itself where it is no DTensor."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _same_shard(copy: Tensor, tensor: Tensor) -> Tensor:
    """`copy` of the local part of the DTensor `tensor` as the same shard. By its constructor, because
    `from_local` would move a copy in host memory back to the mesh's GPU."""
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)  # noqa: S101 - for the type checker
    return DTensor(copy, tensor._spec, requires_grad=False)  # type: ignore[no-untyped-call]


class Snapshot:
    """Host buffers for one state, allocated once and used for every save."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def reserve(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate now what `take` will need, so that the first save is no slower than the next ones."""
        for name, tensor in tensors.items():
            self._buffer(name, local_part(tensor)).zero_()  # touched, or the first copy pays for every page

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of `tensors`; they are good until the next `take`."""
        copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.current_stream().synchronize()
        return copies

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        local = local_part(tensor)
        copy = self._buffer(name, local).copy_(local, non_blocking=True)
        return copy if not hasattr(tensor, "to_local") else _same_shard(copy, tensor)

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            # Pinned memory is what a GPU can copy to without a detour.
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        return buffer
