"""One rank's place in the job: its numbers, device, threads, process groups, and how ranks agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from llmctl import errors
from llmctl.errors import ConfigError, LlmctlError
from llmctl.wire.specs import NodeSpec

T = TypeVar("T")

BESIDE_S = 1800.0
"""How long ranks wait for one another beside training, where one may upload longer than the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One rank of a running job.

    Attributes:
        device: where this rank computes.
        host: name of this rank's host; `leader`: this is the host's first rank.
        host_leaders: the first rank of every host, in host order.
        host_ranks: the ranks of this host.
        host_group: their process group; None where the world is this one rank.
        world_group: the process group of all ranks, where it is not the one that training uses.
        timeout: of every collective; a group made without one would wait for torch's half an hour.
    """

    rank: int
    world: int
    local_rank: int
    host: str
    device: torch.device
    host_leaders: tuple[int, ...]
    host_ranks: tuple[int, ...]
    host_group: dist.ProcessGroup | None = None
    world_group: dist.ProcessGroup | None = None
    timeout: timedelta = timedelta(minutes=10)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def leader(self) -> bool:
        return self.rank in self.host_leaders

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group of all ranks."""
        return self.world_group or (dist.group.WORLD if self.world > 1 else None)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank. Also a barrier."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values

    def agree(self, failure: LlmctlError | None) -> None:
        """Raise on all ranks what any rank has failed with, so that none waits for one that gave up."""
        told = None
        if failure is not None:
            told = (type(failure).__name__, failure.message, failure.hint, self.host, failure.stage)
        for other in self.gather(told):
            if other is not None:
                name, message, hint, host, stage = other
                raise getattr(errors, name)(message, hint=hint, host=host, stage=stage)

    def together(self, work: Callable[[], object]) -> None:
        """Do `work` on this rank, and raise on all ranks what any of them ran into."""
        failure: LlmctlError | None = None
        try:
            work()
        except LlmctlError as error:
            failure = error
        self.agree(failure)

    def close(self) -> None:
        """Leave the process group in order; without it torch warns of a leak in every log."""
        if dist.is_initialized():
            dist.destroy_process_group()


def open_session(spec: NodeSpec, env: Mapping[str, str] = os.environ) -> Session:
    """Join the job as the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR ...) says.

    Raises:
        ConfigError: the environment is not that of a rank, or NCCL was asked for without a GPU.
    """
    rank, world = _number(env, "RANK", 0), _number(env, "WORLD_SIZE", 1)
    local_rank = _number(env, "LOCAL_RANK", rank)
    device = choose_device(spec, local_rank)
    _set_threads(spec)
    torch.manual_seed(spec.recipe.seed if spec.recipe else 0)
    if world > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=spec.launch.pg_timeout_s))
    return Session(
        rank=rank,
        world=world,
        local_rank=local_rank,
        host=spec.host,
        device=device,
        host_leaders=_leaders(spec),
        host_ranks=_host_ranks(spec, rank, world),
        host_group=_host_group(spec, rank, world),
        timeout=timedelta(seconds=spec.launch.pg_timeout_s),
    )


def open_beside(session: Session, spec: NodeSpec) -> Session:
    """The same ranks with process groups of their own, for a thread that works beside training: collectives
    of two threads in one group would be mixed up. All ranks call it at the same place.

    Its groups are gloo ones, for objects and host memory.
    """
    if session.world == 1:
        return session
    timeout = timedelta(seconds=max(BESIDE_S, spec.launch.pg_timeout_s))
    everyone = dist.new_group(backend="gloo", timeout=timeout)
    own_host = everyone
    if len(spec.peers) > 1:
        own_host = _new_host_group(spec, session.rank, backend="gloo", timeout=timeout)
    return replace(session, world_group=everyone, host_group=own_host)


def choose_device(spec: NodeSpec, local_rank: int) -> torch.device:
    """This rank's GPU, or the CPU where there is none or the job asks for gloo.

    Raises:
        ConfigError: NCCL without a GPU, or more ranks than GPUs on this host.
    """
    backend = (spec.job.get("train") or {}).get("backend", "auto")
    gpus = 0 if backend == "gloo" else torch.cuda.device_count()
    if gpus == 0 and backend != "nccl":
        return torch.device("cpu")
    if local_rank >= gpus:
        raise ConfigError(
            f"{spec.launch.nproc} ranks on {gpus} GPUs",
            hint=f"set `slots` of {spec.host} to at most {gpus}, or train.backend: gloo to use its CPUs",
            host=spec.host,
            stage="device",
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _set_threads(spec: NodeSpec) -> None:
    """Share this host's cores among its ranks; torchrun's default of one thread would leave cores idle."""
    wanted = spec.recipe.threads if spec.recipe else None
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(wanted or max(1, cores // max(1, spec.launch.nproc)))


def _leaders(spec: NodeSpec) -> tuple[int, ...]:
    return tuple(peer.first_rank for peer in spec.peers) or (0,)


def _host_ranks(spec: NodeSpec, rank: int, world: int) -> tuple[int, ...]:
    for peer in spec.peers:
        ranks = range(peer.first_rank, peer.first_rank + peer.nproc)
        if rank in ranks:
            return tuple(ranks)
    return tuple(range(world))


def _host_group(spec: NodeSpec, rank: int, world: int) -> dist.ProcessGroup | None:
    if world == 1 or len(spec.peers) <= 1:
        return dist.group.WORLD if world > 1 else None
    return _new_host_group(spec, rank, timeout=timedelta(seconds=spec.launch.pg_timeout_s))


def _new_host_group(spec: NodeSpec, rank: int, **settings: Any) -> dist.ProcessGroup | None:
    """Every rank must take part in making every host's group, also of those it is not in."""
    mine = None
    for peer in spec.peers:
        ranks = list(range(peer.first_rank, peer.first_rank + peer.nproc))
        group = dist.new_group(ranks, **settings)
        if rank in ranks:
            mine = group
    return mine


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} is not a number", hint="start this by torchrun", stage="launch")
    return int(text)
