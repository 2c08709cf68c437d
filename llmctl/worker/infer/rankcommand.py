"""PURE: how one rank of a replica is started: its argument list, its environment, what its spec file says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from llmctl.wire import environment
from llmctl.wire.codec import dumps
from llmctl.wire.infer import ReplicaSpec
from llmctl.wire.serving import BUILTIN, VLLM, InferSpec
from llmctl.wire.specs import NodeSpec
from llmctl.worker.infer.orders import RankSlot, Start

MODULES = {BUILTIN: "llmctl.worker.infer.replica", VLLM: "llmctl.worker.infer.vllm.replica"}


def rank_command(
    spec: NodeSpec, infer: InferSpec, folder: Path
) -> Callable[[Start, RankSlot, Path], tuple[list[str], dict[str, str]]]:
    """A function of (order, rank, ready file) for this host; it writes the rank's spec file into `folder`."""
    node = spec.launch.node_rank

    def command(order: Start, place: RankSlot, ready: Path) -> tuple[list[str], dict[str, str]]:
        told = replica_spec(spec, infer, order, place, ready)
        file = folder / f"replica-{order.replica}-{order.generation}-{place.rank}.json"
        file.write_text(dumps(told))
        threads = infer.threads[node] if infer.threads else None
        argv = [sys.executable, "-u", "-m", MODULES[infer.engine], str(file)]
        return argv, rank_environment(order, place, world=infer.world, threads=threads)

    return command


def replica_spec(spec: NodeSpec, infer: InferSpec, order: Start, place: RankSlot, ready: Path) -> ReplicaSpec:
    """What one process of `order` is told."""
    node = spec.launch.node_rank
    gpus = spec.env.get(environment.BACKEND) == "nccl"
    return ReplicaSpec(
        name=f"replica {order.replica}",
        model=infer.model,
        ready_file=str(ready),
        tp=infer.tp,
        pp=infer.pp,
        dtype=infer.dtype,
        max_batch=infer.max_batch,
        max_length=infer.max_tokens,
        max_waiting=2 * infer.max_batch + 1024,
        threads=infer.threads[node] if infer.threads else None,
        nproc=len(order.ranks) + len(place.more),
        listen=spec.peers[node].addr,
        pg_timeout_s=infer.hang_s,
        check=infer.check,
        node=order.node,
        nodes=order.nodes,
        start_s=infer.start_s,
        devices=(place.slot, *place.more) if gpus else (),
    )


def rank_environment(order: Start, place: RankSlot, *, world: int, threads: int | None) -> dict[str, str]:
    """torchrun's contract for one rank of a replica: a world of its own, whatever else the run has."""
    found = {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(place.slot),
        "LOCAL_WORLD_SIZE": str(len(order.ranks)),
        "GROUP_RANK": "0",
        "MASTER_ADDR": order.master_addr,
        "MASTER_PORT": str(order.master_port),
    }
    return {**found, "OMP_NUM_THREADS": str(threads)} if threads else found
