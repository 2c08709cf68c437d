"""(RunConfig, HostFacts) -> Plan: exactly what each host will be told. Pure; `--dry-run` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from llmctl.controller.config.job import job_for_record
from llmctl.controller.config.models import JobFile, LoraSection
from llmctl.controller.config.types import Host, RunConfig
from llmctl.controller.plan.auto import planned_recipe
from llmctl.controller.plan.machines import Given
from llmctl.controller.plan.network import interface, master_address, own_address
from llmctl.controller.plan.parallel import script_layout
from llmctl.controller.plan.refusals import Site
from llmctl.controller.plan.slow import balanced
from llmctl.controller.probe.facts import HostFacts
from llmctl.errors import PreflightError
from llmctl.wire import environment
from llmctl.wire.progress import WatchSpec
from llmctl.wire.recipe import LoraSpec, ModelSpec, OptimizerSpec, RecipeSpec
from llmctl.wire.specs import DataSource, LaunchSpec, NodeSpec, Peer

RECIPE_COMMAND = ("-m", "llmctl.worker.train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What makes this start this one: chosen outside, so that planning stays pure.

    `epoch` and `contact_s`: of its supervisor, as in NodeSpec.
    """

    run_id: str
    attempt: int
    created_at: float
    agent: str
    tree: str | None
    epoch: int = 0
    contact_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One attempt of one run, node by node, in rank order. `layout_why`: the rule that chose the layout.

    `network_why`: what of a network map was used; empty: none.
    """

    run_id: str
    attempt: int
    master_addr: str
    master_port: int
    world_size: int
    backend: str
    nodes: tuple[NodeSpec, ...]
    layout_why: str = ""
    network_why: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """`2 nodes x 4 ranks · ddp · gloo`."""
        sizes = sorted({node.launch.nproc for node in self.nodes})
        ranks = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}"
        nodes = len(self.nodes)
        parts = [f"{nodes} node{'s' * (nodes != 1)} x {ranks} rank{'s' * (ranks != '1')}", self.backend]
        recipe = self.nodes[0].recipe
        if self.nodes[0].launch.command != RECIPE_COMMAND:
            parts.insert(0, "script " + self.nodes[0].launch.command[0])
        if recipe is not None and self.nodes[0].launch.command != RECIPE_COMMAND:
            parts.insert(2, recipe.parallel.name if recipe.parallel else "ddp")
            parts.append(f"batch {recipe.global_batch}")
        elif recipe is not None:
            parts.insert(1, recipe.parallel.name if recipe.parallel else "ddp")
            parts.append(f"batch {recipe.global_batch} x {recipe.sequence_length} tokens")
        return " · ".join(parts)


def plan_run(
    config: RunConfig,
    facts: Mapping[str, HostFacts],
    identity: Identity,
    vocabulary: int | None = None,
    given: Given = Given(),  # noqa: B008 - frozen
) -> Plan:
    """The plan of one attempt; every host is known to be fit (`preflight.job_problems` is empty).

    Args:
        vocabulary: tokens of the corpus, where it can be read from here.
        given: what was measured of the machines.

    Raises:
        PreflightError: no address or no free port for the master, or more ranks than samples.
    """
    first = facts[config.hosts[0].name]
    backend = _backend(config, facts)
    master = master_address(config.hosts, facts)
    port = first.python.free_port if first.python else 0
    if port == 0:
        raise PreflightError("no free TCP port was found", host=first.host, stage="plan")
    peers = _peers(config.hosts, facts, master)
    world = sum(peer.nproc for peer in peers)
    recipe, why = _recipe(config, peers, facts, vocabulary, given)
    nodes = tuple(
        _node(config, facts[host.name], host, peers, peer, identity, (master, port), backend, recipe)
        for host, peer in zip(config.hosts, peers, strict=True)
    )
    return Plan(
        run_id=identity.run_id,
        attempt=identity.attempt,
        master_addr=master,
        master_port=port,
        world_size=world,
        backend=backend,
        nodes=nodes,
        layout_why=why,
        warnings=_warnings(config, world),
    )


def ranks_of(host: Host, facts: HostFacts) -> int:
    """Ranks on one host: its slots, else its GPUs, else one."""
    return host.slots or len(facts.gpus) or 1


def local_hosts(hosts: tuple[Host, ...]) -> frozenset[str]:
    """Names of those that are this machine."""
    return frozenset(host.name for host in hosts if host.is_local)


def shared_threads(
    hosts: tuple[Host, ...], host: Host, peers: tuple[Peer, ...], facts: HostFacts
) -> int | None:
    """Threads per rank where several `local` hosts share this machine's cores; None: the host's own rule.

    Each of them would take all cores: measured, two ranks on two cores were ten times slower that way.
    """
    ranks = [peer.nproc for other, peer in zip(hosts, peers, strict=True) if other.is_local]
    if not host.is_local or len(ranks) < 2:
        return None
    return max(1, facts.cores // sum(ranks))


def _backend(config: RunConfig, facts: Mapping[str, HostFacts]) -> str:
    wanted = config.job.train.backend
    if wanted != "auto":
        return wanted
    return "nccl" if all(facts[host.name].gpus for host in config.hosts) else "gloo"


def _peers(hosts: tuple[Host, ...], facts: Mapping[str, HostFacts], master: str) -> tuple[Peer, ...]:
    peers: list[Peer] = []
    for number, host in enumerate(hosts):
        known = facts[host.name]
        addr = host.internal_addr or own_address(known, interface(host, known, master)) or host.addr
        first = peers[-1].first_rank + peers[-1].nproc if peers else 0
        nproc = ranks_of(host, known)
        peers.append(Peer(host=host.name, addr=addr, node_rank=number, nproc=nproc, first_rank=first))
    return tuple(peers)


def _node(
    config: RunConfig,
    facts: HostFacts,
    host: Host,
    peers: tuple[Peer, ...],
    me: Peer,
    identity: Identity,
    master: tuple[str, int],
    backend: str,
    recipe: RecipeSpec | None,
) -> NodeSpec:
    job = config.job
    corpora = data_sources(job)
    env = {**config.env, environment.BACKEND: backend}
    threads = shared_threads(config.hosts, host, peers, facts)
    if threads is not None:
        env.setdefault("OMP_NUM_THREADS", str(threads))
        recipe = replace(recipe, threads=recipe.threads or threads) if recipe else None
    launch = LaunchSpec(
        launcher=job.train.launcher,
        python=facts.python.executable if facts.python else host.python,
        command=RECIPE_COMMAND if job.train.script is None else (job.train.script, *job.train.args),
        nnodes=len(peers),
        node_rank=me.node_rank,
        nproc=me.nproc,
        world_size=sum(peer.nproc for peer in peers),
        first_rank=me.first_rank,
        master_addr=master[0],
        master_port=master[1],
        interface=interface(host, facts, master[0]) if len(peers) > 1 else None,
        pg_timeout_s=job.train.pg_timeout_s,
    )
    return NodeSpec(
        run_id=identity.run_id,
        run_name=job.name,
        host=host.name,
        attempt=identity.attempt,
        created_at=identity.created_at,
        workdir=facts.workdir,
        launch=launch,
        peers=peers,
        agent=identity.agent,
        tree=identity.tree,
        env=env,
        secret_names=tuple(sorted(config.secrets)),
        data_uri=corpora[0].uri if len(corpora) == 1 else None,
        data_mix=corpora if len(corpora) > 1 else (),
        cache_bytes=job.data.cache_bytes if job.data else None,
        checkpoint_uri=job.checkpoint.uri,
        total_steps=recipe.steps if recipe else None,
        recipe=recipe,
        job=job_for_record(job),
        grace_s=job.train.grace_s,
        watch=watch_spec(job),
        epoch=identity.epoch,
        contact_s=identity.contact_s,
    )


def watch_spec(job: JobFile) -> WatchSpec:
    """`watch` of a job in wire form."""
    text = job.watch.hang
    seconds = {"auto": None, "off": 0.0}.get(text, 0.0)
    if text not in ("auto", "off"):
        seconds = float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]
    return WatchSpec(hang_s=seconds, policy=job.watch.policy, straggler=job.watch.straggler)


def data_sources(job: JobFile) -> tuple[DataSource, ...]:
    """The job's corpora in wire form; none where it names no data."""
    entries = job.data.corpora if job.data else ()
    return tuple(DataSource(uri=entry.uri, weight=entry.weight) for entry in entries)


def _recipe(
    config: RunConfig,
    peers: tuple[Peer, ...],
    facts: Mapping[str, HostFacts],
    vocabulary: int | None,
    given: Given,
) -> tuple[RecipeSpec | None, str]:
    """The recipe with the layout of all ranks, and why this one; (None, "") for a script without one."""
    job = config.job
    ranks = {peer.host: peer.nproc for peer in peers}
    if job.train.script is not None:
        return _script_recipe(job, sum(ranks.values())), ""
    local = local_hosts(config.hosts)
    planned = planned_recipe(job, recipe_spec(job), ranks, facts, vocabulary, given, local)
    return balanced(planned.recipe, ranks, given.speeds), planned.why


def _script_recipe(job: JobFile, world: int) -> RecipeSpec | None:
    """What `worker.prepare` reads: settings of the training, its model aside."""
    if not job.script_has_recipe:
        return None
    recipe = recipe_spec(job)
    return replace(recipe, parallel=script_layout(job, recipe, Site(world=world)))


def recipe_spec(job: JobFile) -> RecipeSpec:
    """The recipe part of a job in wire form."""
    recipe = job.recipe
    given = recipe.model.model_dump(exclude={"size", "from_"}, exclude_none=True)
    optimizer = recipe.optimizer.model_dump()
    return RecipeSpec(
        steps=recipe.steps,
        global_batch=recipe.global_batch,
        micro_batch=recipe.micro_batch,
        sequence_length=recipe.sequence_length,
        seed=recipe.seed,
        precision=recipe.precision,
        model=ModelSpec(size=recipe.model.size, overrides=given, source=recipe.model.from_),
        optimizer=OptimizerSpec(**{**optimizer, "betas": tuple(optimizer["betas"])}),
        checkpoint_every=job.checkpoint.every,
        keep=job.checkpoint.keep,
        keep_every=job.checkpoint.keep_every,
        checkpoint_async=job.checkpoint.async_,
        checkpoint_on_failure=job.checkpoint.on_failure,
        verify_upload=job.checkpoint.verify_upload,
        resume=job.checkpoint.resume,
        log_every=recipe.log_every,
        threads=recipe.threads,
        tensorboard=recipe.tensorboard,
        lora=_lora_spec(recipe.lora),
        aggregation=recipe.aggregation,
        activation_checkpointing=recipe.activation_checkpointing,
        compile=recipe.compile,
        dropout=recipe.dropout,
        on_bad_loss=recipe.on_bad_loss,
        spike_threshold=recipe.spike_threshold,
        self_check=recipe.self_check,
    )


def _lora_spec(lora: LoraSection | None) -> LoraSpec | None:
    if lora is None:
        return None
    return LoraSpec(rank=lora.rank, alpha=lora.alpha, targets=tuple(lora.targets))


def _warnings(config: RunConfig, world: int) -> tuple[str, ...]:
    found = []
    if config.job.train.script is None and config.job.recipe.global_batch < world:
        found.append(f"global_batch {config.job.recipe.global_batch} leaves some of {world} ranks idle")
    return tuple(found)
