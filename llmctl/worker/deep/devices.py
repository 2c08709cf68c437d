"""How fast every device multiplies, and whether two hosts can add up a tensor."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from llmctl.wire.deep import DeepReply, DeepRequest, DeviceSpeed

CPU_SIZE, GPU_SIZE = 1024, 8192
CPU_BYTES, GPU_BYTES = 4 << 20, 64 << 20
TURNS = 3
ENOUGH_S = 1.0
PEER_S = 20.0
"""For a peer that has to import torch or is busy; the controller has a deadline of its own."""

_served: list[TCPStore] = []
"""The store of the next all-reduce, where this side is its rank 0."""


def matmul(request: DeepRequest) -> DeepReply:
    """Every device for `seconds`, one after the other."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [_speed(torch.device("cuda", index), request.seconds) for index in range(gpus)]
    return DeepReply(devices=tuple(found or [_speed(torch.device("cpu"), request.seconds)]))


def _speed(device: torch.device, seconds: float) -> DeviceSpeed:
    """Products of the same matrices, over and over: a sound device gives the same each time."""
    is_gpu = device.type == "cuda"
    size, dtype = (GPU_SIZE, torch.bfloat16) if is_gpu else (CPU_SIZE, torch.float32)
    generator = torch.Generator(device=device).manual_seed(7)
    a, b = (torch.randn(size, size, device=device, dtype=dtype, generator=generator) for _ in "ab")
    first = a @ b
    out = torch.empty_like(first)
    _settle(device)
    count, began, same = 0, time.perf_counter(), True
    while time.perf_counter() - began < seconds:
        torch.matmul(a, b, out=out)
        _settle(device)
        count += 1
        if count & (count - 1) == 0:  # now and then: comparing is not what is measured
            same = same and bool(torch.equal(out, first))
    flops = 2 * size**3 * count / (time.perf_counter() - began)
    name = f"gpu {device.index}" if is_gpu else "cpu"
    return DeviceSpeed(name=name, model=_model(device), flops=flops, same=same)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _model(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def serve(_request: DeepRequest) -> DeepReply:
    """A rendezvous store on a free port, for the all-reduce that comes next."""
    _served.clear()
    store = TCPStore(
        "0.0.0.0",  # noqa: S104 - the peer's address is another machine's; it lives for seconds
        0,
        2,
        is_master=True,
        timeout=timedelta(seconds=PEER_S),
        wait_for_workers=False,
    )
    _served.append(store)
    return DeepReply(port=store.port)


def reduce(request: DeepRequest) -> DeepReply:
    """All-reduce with one peer: the sum must be right, the best of some turns is the rate."""
    if request.interface:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ[name] = request.interface
    limit = timedelta(seconds=PEER_S)
    store = (
        _served.pop()
        if request.rank == 0
        else TCPStore(request.addr, request.port, 2, is_master=False, timeout=limit)
    )
    try:
        dist.init_process_group(request.backend, store=store, rank=request.rank, world_size=2, timeout=limit)
        return DeepReply(rate=_summed(request.rank, request.backend))
    finally:
        with suppress(RuntimeError, ValueError):
            if dist.is_initialized():
                dist.destroy_process_group()


def _summed(rank: int, backend: str) -> float:
    """Bytes per second of the best turn; the first makes the connections, and is all of it on a slow link."""
    device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    count = (GPU_BYTES if backend == "nccl" else CPU_BYTES) // 4
    best = _turn(rank, count, device)
    slowest = torch.tensor([best], device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)  # both sides must agree whether to go on
    for _ in range(TURNS if float(slowest) < ENOUGH_S else 0):
        best = min(best, _turn(rank, count, device))
    return 4 * count / best


def _turn(rank: int, count: int, device: torch.device) -> float:
    tensor = torch.full((count,), float(rank + 1), device=device)
    _settle(device)
    began = time.perf_counter()
    dist.all_reduce(tensor)
    _settle(device)
    took = time.perf_counter() - began
    wrong = int((tensor != 3.0).sum())
    if wrong:
        raise ValueError(f"the all-reduce gave {wrong} wrong sums of {count}")
    return took
