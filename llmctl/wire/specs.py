"""What a host is told: one NodeSpec per host and attempt, without secrets, stored as node.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from llmctl.wire.progress import WatchSpec
from llmctl.wire.recipe import RecipeSpec
from llmctl.wire.serving import InferSpec


@dataclass(frozen=True)
class Peer:
    """One host of a run, as every other host and any later controller knows it."""

    host: str
    addr: str
    node_rank: int
    nproc: int
    first_rank: int


@dataclass(frozen=True)
class DataSource:
    """One corpus of a mixture; `weight` is its share of the samples, beside the others' weights."""

    uri: str
    weight: float = 1.0


@dataclass(frozen=True)
class LaunchSpec:
    """How the agent starts this node's ranks.

    Attributes:
        launcher: `torchrun`, or `direct`: the agent starts the ranks itself with torchrun's environment.
        python: the interpreter on this host that runs launcher and ranks.
        command: what each rank runs, after the interpreter: `("train.py", "--lr", "1")` or
            `("-m", "llmctl.worker.train")`.
        interface: the network interface towards the master; None on a single node.
        pg_timeout_s: process-group timeout that the recipe sets and scripts find in LLMCTL_PG_TIMEOUT_S.
    """

    launcher: str
    python: str
    command: tuple[str, ...]
    nnodes: int
    node_rank: int
    nproc: int
    world_size: int
    first_rank: int
    master_addr: str
    master_port: int
    interface: Optional[str] = None
    pg_timeout_s: float = 600.0


@dataclass(frozen=True)
class NodeSpec:
    """Everything one host is told about one attempt of a run; written to node.json, so no secret values.

    Attributes:
        created_at: Unix time on the controller's clock.
        tree: hash of the pushed code tree, or None where the job pushes none.
        agent: hash of the agent archive that this run was started with.
        env: environment of the ranks (no secrets).
        secret_names: names whose values came on the agent's stdin; logs and displays mask the values.
        data_uri: the corpus; None where the job has none, or a mixture.
        data_mix: the corpora of a mixture, in the order that counts.
        cache_bytes: what copies of remote data may take on this host; None: half of what is free.
        checkpoint_uri: store for checkpoints; None: the run directory's `checkpoints/`.
        total_steps: for progress and ETA; None where only the script knows.
        recipe: settings of the built-in recipe; None for the user's own script.
        infer: an inference run; then `recipe` is None.
        share: other runs may use this host beside it.
        watch: when ranks count as hanging, and what then.
        epoch: of the supervisor that started this attempt; 0: it has none.
        contact_s: without a word of the supervisor for so long, the agent ends the attempt: then it may go
            on elsewhere; None: it goes on however long nobody is heard.
        job: the job as written, for displays and `resume`; secrets are names in it, never values.
    """

    run_id: str
    run_name: str
    host: str
    attempt: int
    created_at: float
    workdir: str
    launch: LaunchSpec
    peers: tuple[Peer, ...]
    agent: str
    tree: Optional[str] = None
    env: dict[str, str] = field(default_factory=dict)
    secret_names: tuple[str, ...] = ()
    data_uri: Optional[str] = None
    checkpoint_uri: Optional[str] = None
    total_steps: Optional[int] = None
    recipe: Optional[RecipeSpec] = None
    job: dict[str, Any] = field(default_factory=dict)
    lease_s: float = 2.0
    grace_s: float = 20.0
    data_mix: tuple[DataSource, ...] = ()
    cache_bytes: Optional[int] = None
    infer: Optional[InferSpec] = None
    epoch: int = 0
    contact_s: Optional[float] = None
    share: bool = False
    watch: WatchSpec = field(default_factory=WatchSpec)

    @property
    def corpora(self) -> tuple[DataSource, ...]:
        """Every corpus of the job: the mixture, the one, or none."""
        return self.data_mix or ((DataSource(self.data_uri),) if self.data_uri is not None else ())
