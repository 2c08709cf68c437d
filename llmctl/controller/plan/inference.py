"""(RunConfig, HostFacts) -> Plan of an inference run: which replica's ranks go where. Pure.

A replica whose ranks fit on one host never leaves it; what is left of several hosts' slots is put together
only then. So tensor parallelism crosses a network only where it must, and `warnings` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmctl.controller.config.inference import InferSection
from llmctl.controller.config.job import job_for_record
from llmctl.controller.config.types import Host, RunConfig
from llmctl.controller.plan.network import interface, master_address, own_address
from llmctl.controller.plan.plan import Identity, Plan, ranks_of, shared_threads
from llmctl.controller.plan.vllm import only_even
from llmctl.controller.probe.facts import HostFacts
from llmctl.errors import PreflightError
from llmctl.wire import environment
from llmctl.wire.serving import (
    BUILTIN,
    VLLM,
    BatchSpec,
    InferSpec,
    RankPlace,
    ReplicaPlan,
    ServeSpec,
)
from llmctl.wire.specs import LaunchSpec, NodeSpec, Peer

COMMAND = ("-m", "llmctl.worker.infer.host")
STAGE = "plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the replicas are for: exactly one of both."""

    batch: BatchSpec | None = None
    serve: ServeSpec | None = None


def plan_inference(config: RunConfig, facts: Mapping[str, HostFacts], identity: Identity, work: Work) -> Plan:
    """The plan of one inference run; every host is known to be fit.

    Raises:
        PreflightError: no address or port for the front, too few slots, or a host lacks a package.
    """
    section = _section(config)
    _check_packages(config.hosts, facts, work)
    slots = [ranks_of(host, facts[host.name]) for host in config.hosts]
    world = section.parallel.tp * section.parallel.pp
    replicas = _placed(section, slots, world)
    if not replicas:
        raise PreflightError(_too_few(slots, world, section), stage=STAGE, hint=_more_slots(config.hosts))
    spec = _spec(config, section, replicas, _threads(config.hosts, facts, slots, section), work)
    first = facts[config.hosts[0].name]
    port = first.python.free_port if first.python else 0
    if port == 0:
        raise PreflightError("no free TCP port was found", host=first.host, stage=STAGE)
    master = master_address(config.hosts, facts)
    peers = _peers(config.hosts, facts, master)
    backend = "nccl" if all(facts[host.name].gpus for host in config.hosts) else "gloo"
    nodes = tuple(
        _node(config, facts[host.name], host, peers, peer, identity, (master, port), backend, spec)
        for host, peer in zip(config.hosts, peers, strict=True)
    )
    return Plan(
        run_id=identity.run_id,
        attempt=identity.attempt,
        master_addr=master,
        master_port=port,
        world_size=len(nodes),
        backend=backend,
        nodes=nodes,
        warnings=_warnings(config.hosts, slots, spec),
    )


def _placed(section: InferSection, slots: Sequence[int], world: int) -> tuple[ReplicaPlan, ...]:
    """None where they don't fit. vLLM's need equal shares of their hosts, whoever is first."""
    wanted = None if section.replicas == "auto" else section.replicas
    if section.engine != VLLM:
        return place(slots, world, wanted)
    found = only_even(place(slots, world))
    return () if wanted is not None and wanted > len(found) else found[:wanted]


def place(slots: Sequence[int], world: int, wanted: int | None = None) -> tuple[ReplicaPlan, ...]:
    """Replicas of `world` ranks on nodes with so many slots each; none where they don't fit.

    Args:
        wanted: how many replicas; None: as many as fit.
    """
    whole = [_cut(node, 0, count, world) for node, count in enumerate(slots)]
    # One of each node in turn: fewer replicas than fit are spread over the hosts.
    inside = [
        ranks[turn] for turn in range(max(map(len, whole), default=0)) for ranks in whole if turn < len(ranks)
    ]
    rest = [
        RankPlace(node=node, slot=slot)
        for node, count in enumerate(slots)
        for slot in range(count - count % world, count)
    ]
    across = [tuple(rest[at : at + world]) for at in range(0, len(rest) - world + 1, world)]
    places = [*inside, *across]
    if wanted is not None and wanted > len(places):
        return ()
    return tuple(ReplicaPlan(index=number, ranks=ranks) for number, ranks in enumerate(places[:wanted]))


def _cut(node: int, start: int, count: int, world: int) -> list[tuple[RankPlace, ...]]:
    return [
        tuple(RankPlace(node=node, slot=at + rank) for rank in range(world))
        for at in range(start, count - world + 1, world)
    ]


def summary(spec: InferSpec) -> str:
    """`2 replicas x tp 2 · bf16 · 16 at once`."""
    layout = " ".join(f"{name} {size}" for name, size in (("tp", spec.tp), ("pp", spec.pp)) if size > 1)
    count = len(spec.replicas)
    parts = [f"{count} replica{'s' * (count != 1)}" + (f" x {layout}" if layout else "")]
    parts.append(spec.dtype if spec.engine == BUILTIN else f"{spec.dtype} by {spec.engine}")
    parts.append(f"{spec.max_batch} at once, {spec.max_tokens} tokens each")
    return " · ".join([spec.name, *parts])


def _section(config: RunConfig) -> InferSection:
    if config.job.infer is None:
        raise PreflightError("the job has no `infer`", stage=STAGE)
    return config.job.infer


def _spec(
    config: RunConfig,
    section: InferSection,
    replicas: tuple[ReplicaPlan, ...],
    threads: tuple[int, ...],
    work: Work,
) -> InferSpec:
    return InferSpec(
        model=section.model,
        name=section.name or section.model.rstrip("/").rpartition("/")[2] or config.job.name,
        replicas=replicas,
        tp=section.parallel.tp,
        pp=section.parallel.pp,
        dtype=section.dtype,
        engine=section.engine,
        max_batch=section.max_batch,
        max_tokens=section.max_tokens,
        hang_s=section.hang_s,
        start_s=section.start_s,
        max_restarts=section.max_restarts,
        check=section.check,
        threads=threads,
        batch=work.batch,
        serve=work.serve,
    )


def _threads(
    hosts: tuple[Host, ...], facts: Mapping[str, HostFacts], slots: Sequence[int], section: InferSection
) -> tuple[int, ...]:
    """CPU threads per rank on each node."""
    if section.threads is not None:
        return (section.threads,) * len(hosts)
    counted = tuple(
        Peer(host=host.name, addr="", node_rank=n, nproc=slots[n], first_rank=0)
        for n, host in enumerate(hosts)
    )
    found = []
    for host, count in zip(hosts, slots, strict=True):
        known = facts[host.name]
        found.append(shared_threads(hosts, host, counted, known) or max(1, known.cores // count))
    return tuple(found)


def _peers(hosts: tuple[Host, ...], facts: Mapping[str, HostFacts], master: str) -> tuple[Peer, ...]:
    """One program per host; the replicas' ranks are its children, not the agent's."""
    peers = []
    for number, host in enumerate(hosts):
        known = facts[host.name]
        addr = host.internal_addr or own_address(known, interface(host, known, master)) or host.addr
        peers.append(Peer(host=host.name, addr=addr, node_rank=number, nproc=1, first_rank=number))
    return tuple(peers)


def _node(
    config: RunConfig,
    facts: HostFacts,
    host: Host,
    peers: tuple[Peer, ...],
    me: Peer,
    identity: Identity,
    front: tuple[str, int],
    backend: str,
    spec: InferSpec,
) -> NodeSpec:
    env = {**config.env, environment.BACKEND: backend}
    env.setdefault("OMP_NUM_THREADS", str(spec.threads[me.node_rank]))
    launch = LaunchSpec(
        launcher="direct",
        python=facts.python.executable if facts.python else host.python,
        command=COMMAND,
        nnodes=len(peers),
        node_rank=me.node_rank,
        nproc=1,
        world_size=len(peers),
        first_rank=me.first_rank,
        master_addr=front[0],
        master_port=front[1],
        interface=interface(host, facts, front[0]) if len(peers) > 1 else None,
        pg_timeout_s=config.job.train.pg_timeout_s,
    )
    return NodeSpec(
        run_id=identity.run_id,
        run_name=config.job.name,
        host=host.name,
        attempt=identity.attempt,
        created_at=identity.created_at,
        workdir=facts.workdir,
        launch=launch,
        peers=peers,
        agent=identity.agent,
        env=env,
        secret_names=tuple(sorted(config.secrets)),
        infer=spec,
        job=_recorded(config),
        grace_s=config.job.train.grace_s,
    )


def _recorded(config: RunConfig) -> dict[str, Any]:
    return job_for_record(config.job)


def _check_packages(hosts: Sequence[Host], facts: Mapping[str, HostFacts], work: Work) -> None:
    """The front speaks HTTP and knows the tokenizer; the other hosts need neither."""
    first = facts[hosts[0].name]
    needed = ("tokenizers", "aiohttp", "jinja2") if work.serve else ("tokenizers",)
    missing = [name for name in needed if first.python and name not in first.python.modules]
    if missing and first.python:
        raise PreflightError(
            f"python has no {', '.join(missing)} ({first.python.executable})",
            host=first.host,
            stage="check",
            hint=f"on {first.host}: {first.python.executable} -m pip install {' '.join(missing)}",
        )


def _too_few(slots: Sequence[int], world: int, section: InferSection) -> str:
    wanted = 1 if section.replicas == "auto" else section.replicas
    each = f"{world} rank{'s' * (world != 1)} each"
    if section.engine == VLLM and world > 1:
        each += " (vLLM: as many on each host)"
    return f"{wanted} replica{'s' * (wanted != 1)} of {each} don't fit into {sum(slots)} slots"


def _more_slots(hosts: Sequence[Host]) -> str:
    return f"raise `slots:` of {hosts[0].name} in hosts.yaml, -j NODESxRANKS, or a smaller infer.parallel"


def _warnings(hosts: Sequence[Host], slots: Sequence[int], spec: InferSpec) -> tuple[str, ...]:
    found = []
    across = [replica for replica in spec.replicas if _tp_crosses(replica, spec.tp)]
    if across:
        names = ", ".join(hosts[node].name for node in across[0].nodes)
        found.append(
            f"replica {across[0].index}: tp {spec.tp} goes over the network ({names}), which is slow"
        )
    idle = sum(slots) - len(spec.replicas) * spec.world
    if idle:
        found.append(f"{idle} of {sum(slots)} slots stay idle")
    return tuple(found)


def _tp_crosses(replica: ReplicaPlan, tp: int) -> bool:
    groups = [replica.ranks[at : at + tp] for at in range(0, len(replica.ranks), tp)]
    return any(len({place.node for place in group}) > 1 for group in groups)
