"""What `ps` tells of one host: every run that has an agent or processes there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from llmctl.wire.states import NodeState


@dataclass(frozen=True)
class PsRequest:
    """stdin of `ps`. `reap`: end orphans, and check that they are gone."""

    reap: bool = False


@dataclass(frozen=True)
class RunOnHost:
    """One run that holds something of this host.

    Attributes:
        state: None where the run's directory is gone or can't be read.
        agent_pid: of the living agent; None: there is none.
        ranks: that the run was started with here.
        processes: of the run that live now, its agent and guard not counted.
        waits: nothing runs, but a supervisor is about to start the next attempt.
        shared: it was started with `--share`.
        orphans: living processes that no agent or guard looks after any more.
        reaped: how many of them this `ps` has ended.
    """

    run_id: str
    state: Optional[NodeState] = None
    attempt: int = 0
    agent_pid: Optional[int] = None
    ranks: int = 0
    processes: int = 0
    age_s: float = 0.0
    waits: bool = False
    shared: bool = False
    orphans: tuple[str, ...] = ()
    reaped: int = 0


@dataclass(frozen=True)
class PsReply:
    """stdout of `ps`, by run id. `now`: the host's Unix time."""

    now: float
    runs: tuple[RunOnHost, ...] = ()
