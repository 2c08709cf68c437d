"""What a host tells back: the files of a run directory and the replies of the node agent's verbs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional

from llmctl.wire.progress import Hang, Progress
from llmctl.wire.specs import NodeSpec
from llmctl.wire.states import NodeState
from llmctl.wire.supervision import Supervision


class EventKind(str, Enum):
    """The kinds of lines in events.jsonl."""

    AGENT_STARTED = "agent-started"
    CODE_READY = "code-ready"
    LAUNCHER_STARTED = "launcher-started"
    RANK_STARTED = "rank-started"
    RANK_EXITED = "rank-exited"
    LAUNCHER_EXITED = "launcher-exited"
    STOP_REQUESTED = "stop-requested"
    HANG = "hang"
    FENCED = "fenced"
    KILLED = "killed"
    ENDED = "ended"


@dataclass(frozen=True)
class Event:
    """One line of events.jsonl. `seq` counts from 1 without gaps; `t` is the host's Unix time."""

    seq: int
    t: float
    kind: str
    attempt: int
    rank: Optional[int] = None
    pid: Optional[int] = None
    code: Optional[int] = None
    signal: Optional[str] = None
    detail: str = ""


@dataclass(frozen=True)
class Lease:
    """lease.json: rewritten every `lease_s` while the agent lives.

    `agent_pid` with `agent_start` (field 22 of /proc/PID/stat) names one process for certain, also after
    the pid has been used again; `boot_id` tells a reboot.
    """

    t: float
    attempt: int
    state: NodeState
    agent_pid: int
    agent_start: str
    boot_id: str


@dataclass(frozen=True)
class RankExit:
    """rank-<global>.json: how one rank ended. Killed by signal n: code 128+n and the signal's name."""

    rank: int
    local_rank: int
    pid: int
    code: int
    started_at: float
    ended_at: float
    signal: Optional[str] = None


@dataclass(frozen=True)
class NodeExit:
    """exit.json: the verdict of one node, written last, after the group was seen to be gone.

    `left` names what was still there after the last SIGKILL; empty is the only good value.
    `stop_requested_at` (host's Unix time) tells a run that was stopped, whose peers then lost their
    connections, from a run that failed and whose other nodes were stopped because of it.
    """

    state: NodeState
    code: int
    reason: str
    ended_at: float
    ranks: tuple[RankExit, ...] = ()
    left: tuple[str, ...] = ()
    stop_requested_at: Optional[float] = None


@dataclass(frozen=True)
class StartRequest:
    """stdin of the agent's `start`: the only place where secret values travel.

    `share`: start beside other runs; else the host is refused to a run that comes second.
    """

    spec: NodeSpec
    secrets: dict[str, str] = field(default_factory=dict)
    share: bool = True


@dataclass(frozen=True)
class StartReply:
    """stdout of `start`, after the agent has its own session and node.json is on disk."""

    run_id: str
    agent_pid: int


@dataclass(frozen=True)
class NodeStatus:
    """One host's view of one run; everything a controller without a ledger needs to show it.

    Attributes:
        now: the host's Unix time when it answered; ages are differences on this one clock.
        agent_alive: the process named by the lease exists, with the same start time and boot.
        failure: the first rank of this host that ended badly, with the last lines of its log.
        metrics: the last step line of metrics.jsonl (wire/metrics.py); only on rank 0's host.
        checkpoint_step: the last committed step that the metrics name.
        checkpoint_problem: why the checkpoint after it failed; None: it did not.
        progress: how far each rank of this host has come, where they say so.
        supervision: what the run's supervisor last said; None: it has none.
        hang: what was seen of this host's ranks when they made no progress any more.
    """

    spec: NodeSpec
    state: NodeState
    now: float
    agent_alive: bool
    lease: Optional[Lease] = None
    exit: Optional[NodeExit] = None
    failure: Optional[RankExit] = None
    failure_log: tuple[str, ...] = ()
    metrics: Optional[dict[str, Any]] = None
    checkpoint_step: Optional[int] = None
    checkpoint_problem: Optional[str] = None
    last_event: Optional[Event] = None
    progress: tuple[Progress, ...] = ()
    hang: Optional[Hang] = None
    supervision: Optional[Supervision] = None


@dataclass(frozen=True)
class StatusReply:
    """stdout of `status`: the asked run, or every run of the host, newest first."""

    now: float
    nodes: tuple[NodeStatus, ...] = ()


@dataclass(frozen=True)
class Drained:
    """drained.json in a host's workdir keeps new runs off it: `by` whom, `at` when (Unix time), and why."""

    by: str = ""
    at: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class CleanRequest:
    """stdin of `clean`.

    Attributes:
        older_than_s: only what was last used longer ago than this.
        runs: ended runs' directories too, with their logs and checkpoints.
        keep_agent: hash of the archive that is asking; it stays.
        dry_run: only say what would go.
    """

    older_than_s: float
    runs: bool = False
    keep_agent: str = ""
    dry_run: bool = False


@dataclass(frozen=True)
class CleanedItem:
    """One thing that `clean` removed (or would): `kind` code, agent, cache, run …; size in bytes."""

    kind: str
    name: str
    bytes: int
    age_s: float


@dataclass(frozen=True)
class CleanReport:
    """stdout of `clean`. `live`: runs that go on, never touched; `failed`: what could not be removed."""

    items: tuple[CleanedItem, ...] = ()
    live: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class StopRequest:
    """stdin of `stop`, and stop.json: end the run with SIGTERM, then SIGKILL after `grace_s` seconds.

    `epoch`: of the supervisor that ends an attempt by it; 0: a person ends the run.
    `checkpoint`: SIGTERM goes to the ranks alone, which save a last checkpoint however long it takes, up to
    `grace_s`; the launcher is asked after them.
    """

    grace_s: float
    reason: str = "stop requested"
    epoch: int = 0
    checkpoint: bool = False


@dataclass(frozen=True)
class StopReport:
    """stdout of `stop`.

    Attributes:
        state: the node's state afterwards.
        ended: processes that this stop ended.
        seconds: from the request to the last process gone.
        left: processes, listening ports or GPU memory of the run still there; empty when proven clean.
    """

    run_id: str
    state: NodeState
    ended: int
    seconds: float
    left: tuple[str, ...] = ()
    checkpoint_step: Optional[int] = None


@dataclass(frozen=True)
class FollowRequest:
    """stdin of `follow`.

    Attributes:
        offsets: bytes already received per file, relative to the run directory; resumes without a gap.
        logs: send rank and launcher logs too, not only events and metrics.
        ranks: only these ranks' logs; empty means all.
        tail: where a log has no offset yet, start with its last `tail` lines; negative: from the start.
        attempt: only this attempt's files; None: all, the newest as they appear.
        until_end: stay until the node has ended; else stop at the present end of the files.
    """

    offsets: dict[str, int] = field(default_factory=dict)
    logs: bool = False
    ranks: tuple[int, ...] = ()
    tail: int = -1
    attempt: Optional[int] = None
    until_end: bool = True


@dataclass(frozen=True)
class Frame:
    """One line of `follow`'s stdout: text of a file, or a heartbeat, or the end.

    Attributes:
        file: relative to the run directory; empty for a heartbeat.
        offset: position in the file after `text`: what to ask for next time.
        text: whole lines; a last line without a newline is sent only once the node has ended.
        now: the host's Unix time; a heartbeat comes at least every two seconds.
        state: the node's state at that time.
        end: no more frames follow.
    """

    now: float
    state: NodeState
    file: str = ""
    offset: int = 0
    text: str = ""
    end: bool = False


@dataclass(frozen=True)
class RunFile:
    """One file of a run directory, for `pull`."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class FilesReply:
    """stdout of `files`: what can be pulled of one run from this host, sorted by path.

    Attributes:
        checkpoint_root: folder that `checkpoints/...` paths lie in instead, where the job names one that is
            a folder on this host; empty: the run directory.
    """

    run_id: str
    files: tuple[RunFile, ...] = ()
    checkpoint_root: str = ""
