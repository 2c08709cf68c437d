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
        self, params: Iterable[nn.Parameter], *, world: int, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
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
        self._works.append(sum_async(flat))

    def send_rest(self) -> None:
        """Send what no hook has sent, such as everything on a rank without samples."""
        self._armed = False
        while len(self._works) < len(self._buckets):
            self._send_next()

    def wait(self) -> list[Tensor]:
        """Wait for the sums; returns tensors that hold every gradient exactly once."""
        for work in self._works:
            work.wait()
        if self._buckets:
            return [bucket.flat for bucket in self._buckets]
        return [parameter.grad for parameter in self._params if parameter.grad is not None]


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
    flat = params[0].new_zeros(sum(p.numel() for p in params))
    offset = 0
    for parameter in params:
        parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
    return _Bucket(flat=flat, params=params)


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor], *, source: int, chunk_bytes: int = BUCKET_BYTES) -> None:
    """Give every rank the values that rank `source` has, in place; small tensors travel together."""
    pending: list[Tensor] = []
    size = 0
    for tensor in tensors:
        pending.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= chunk_bytes:
            _broadcast_together(pending, source)
            pending, size = [], 0
    _broadcast_together(pending, source)


def _broadcast_together(tensors: list[Tensor], source: int) -> None:
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for same in by_dtype.values():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in same])
        dist.broadcast(flat, src=source)
        for tensor, part in zip(same, torch.split(flat, [t.numel() for t in same]), strict=True):
            tensor.copy_(part.view_as(tensor))


def sum_async(tensor: Tensor) -> dist.Work:
    """Start the sum over all ranks, in place; `wait()` on what comes back before reading `tensor`."""
    work: dist.Work = dist.all_reduce(tensor, op=dist.ReduceOp.SUM, async_op=True)
    return work
