"""The state as it was at one step, in host memory: the only part of a save that training has to wait for.

Ranks that hold the same tensors share the work: each copies and writes only its own part, so that all ranks
of a checkpoint together hold one copy of the state, and training stands still for a part of the copying.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmctl.worker.optim import like, local
from llmctl.worker.session import Session


def own_share(tensors: Mapping[str, Tensor], index: int, count: int) -> dict[str, Tensor]:
    """The part of replicated `tensors` that member `index` of `count` saves; all parts together are all.

    Every member computes the same shares from names and sizes alone: largest first, to whom has least.
    """
    loads = [0] * count
    mine = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        if type(tensor) not in (Tensor, nn.Parameter):
            mine[name] = tensor  # sharded: every rank has a piece of its own
            continue
        owner = loads.index(min(loads))
        loads[owner] += tensor.nbytes
        if owner == index:
            mine[name] = tensor
    return mine


def agreed_share(session: Session, tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of what this rank saves where ranks hold different tensors; all ranks call it together.

    A shard is saved by whoever holds it; a plain tensor by one of those that do.
    """
    sizes = {name: tensor.nbytes for name, tensor in tensors.items() if not _is_shard(tensor)}
    told = session.gather(sizes)
    loads = [0] * len(told)
    mine = {name for name, tensor in tensors.items() if _is_shard(tensor)}
    everything = {name: size for held in told for name, size in held.items()}
    for name, size in sorted(everything.items(), key=lambda item: (-item[1], item[0])):
        owner = min((rank for rank, held in enumerate(told) if name in held), key=lambda rank: loads[rank])
        loads[owner] += size
        if owner == session.rank:
            mine.add(name)
    return frozenset(mine)


def held_bytes(tensor: Tensor) -> int:
    """Bytes that this rank holds of `tensor`."""
    return local(tensor).nbytes


def _is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


class Snapshot:
    """Host buffers for one state, allocated once and used for every save."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def reserve(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate now what `take` will need, so that the first save is no slower than the next ones."""
        for name, tensor in tensors.items():
            self._buffer(name, local(tensor)).zero_()  # touched, or the first copy pays for every page

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of `tensors`, shards of shards; they are good until the next `take`."""
        copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.current_stream().synchronize()
        return copies

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        held = local(tensor.detach())
        copy = self._buffer(name, held).copy_(held, non_blocking=True)
        return like(copy, tensor, moved=True)

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            # Pinned memory is what a GPU can copy to without a detour.
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        return buffer
