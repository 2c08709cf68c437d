"""Data parallelism by whole copies: gradients are summed over ranks and divided by the data, not the ranks.

The mean of per-rank means is wrong as soon as ranks have unequal numbers of tokens. So every rank
back-propagates the *sum* of its losses, the sums are all-reduced, and the optimizer divides once by the
number of tokens of the whole global batch. A rank without any sample takes part with zeros.

Why not DistributedDataParallel: it averages by default, needs a backward pass on every rank, and costs an
import of torch._dynamo (a second). What it would give, overlap of communication with the backward pass, is
the hook below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmctl.worker.optim import global_norm, like, local

BUCKET_BYTES = 25 << 20


@dataclass(slots=True, kw_only=True)
class _Bucket:
    """A flat buffer that the gradients of some parameters are views of."""

    flat: Tensor
    params: list[nn.Parameter]
    missing: int = 0


class ReplicaGradients:
    """The gradients of one replica: accumulated over micro-batches, summed over the ranks of `group`.

    Use per step: `clear()`, `expect_last()` before the last backward, `send_rest()`, `wait()`.
    With one rank nothing is allocated, hooked or sent.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        world: int,
        group: dist.ProcessGroup | None = None,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._group = group
        self._params = [p for p in params if p.requires_grad]
        self._buckets: list[_Bucket] = []
        self._works: list[dist.Work] = []
        self._armed = False
        if world > 1:
            # Backward reaches the last layers first, so their bucket can leave first.
            for params_of_bucket in _split(list(reversed(self._params)), bucket_bytes):
                self._buckets.append(_make_bucket(params_of_bucket))
            self._hook()

    def _hook(self) -> None:
        for bucket in self._buckets:
            for parameter in bucket.params:
                parameter.register_post_accumulate_grad_hook(self._ready_hook(bucket))  # type: ignore[no-untyped-call]

    def _ready_hook(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        def ready(_: Tensor) -> None:
            if self._armed:
                bucket.missing -= 1
                self._send_complete()

        return ready

    def clear(self) -> None:
        """Forget the gradients of the step before."""
        self._works.clear()
        self._armed = False
        for bucket in self._buckets:
            bucket.flat.zero_()
        if not self._buckets:
            for parameter in self._params:
                parameter.grad = None

    def expect_last(self) -> None:
        """The next backward pass is this step's last: send each bucket as soon as it is complete."""
        self._armed = True
        for bucket in self._buckets:
            bucket.missing = len(bucket.params)

    def _send_complete(self) -> None:
        """Send complete buckets, in their fixed order: ranks must agree on the order of collectives."""
        while len(self._works) < len(self._buckets) and self._buckets[len(self._works)].missing <= 0:
            self._send_next()

    def _send_next(self) -> None:
        flat = self._buckets[len(self._works)].flat
        self._works.append(sum_async(flat, self._group))

    def send_rest(self) -> None:
        """Send what no hook has sent, such as everything on a rank without samples."""
        self._armed = False
        while len(self._works) < len(self._buckets):
            self._send_next()

    def finish(self) -> None:
        """Wait for the sums alone."""
        for work in self._works:
            work.wait()

    def wait(self) -> Tensor:
        """Wait for the sums; returns the norm of all of them together."""
        self.finish()
        if self._buckets:
            return global_norm([bucket.flat for bucket in self._buckets])
        return global_norm([parameter.grad for parameter in self._params if parameter.grad is not None])


def _split(params: list[nn.Parameter], bucket_bytes: int) -> Iterable[list[nn.Parameter]]:
    """Consecutive groups of about `bucket_bytes`, none empty."""
    group: list[nn.Parameter] = []
    size = 0
    for parameter in params:
        group.append(parameter)
        size += parameter.numel() * parameter.element_size()
        if size >= bucket_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def _make_bucket(params: list[nn.Parameter]) -> _Bucket:
    """One buffer, with each parameter's `.grad` set to its part of it."""
    held = [local(parameter) for parameter in params]
    flat = held[0].new_zeros(sum(tensor.numel() for tensor in held))
    offset = 0
    for parameter, tensor in zip(params, held, strict=True):
        parameter.grad = like(flat[offset : offset + tensor.numel()].view_as(tensor), parameter)
        offset += tensor.numel()
    return _Bucket(flat=flat, params=params)


@torch.no_grad()
def broadcast(
    tensors: Iterable[Tensor],
    *,
    source: int,
    group: dist.ProcessGroup | None = None,
    chunk_bytes: int = BUCKET_BYTES,
) -> None:
    """Give every rank of `group` the values of rank `source`, in place; small tensors travel together."""
    pending: list[Tensor] = []
    size = 0
    for tensor in tensors:
        pending.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= chunk_bytes:
            _broadcast_together(pending, source, group)
            pending, size = [], 0
    _broadcast_together(pending, source, group)


def _broadcast_together(tensors: list[Tensor], source: int, group: dist.ProcessGroup | None) -> None:
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for same in by_dtype.values():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in same])
        dist.broadcast(flat, src=source, group=group)
        for tensor, part in zip(same, torch.split(flat, [t.numel() for t in same]), strict=True):
            tensor.copy_(part.view_as(tensor))


def sum_async(tensor: Tensor, group: dist.ProcessGroup | None = None) -> dist.Work:
    """Start the sum over the ranks of `group` (None: all), in place; `wait()` on what comes back before
    reading `tensor`."""
    work: dist.Work = dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group, async_op=True)
    return work
