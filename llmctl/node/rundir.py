"""Reading run directories: what a host knows of its runs, from files and one look at the agent's process."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Optional, TypeVar

from llmctl.errors import DeadlineError, IntegrityError, NotFoundError, ReplacedError
from llmctl.node import atomic, lease, rankfiles
from llmctl.node.group import Group, recall_cgroup
from llmctl.wire import codec
from llmctl.wire.layout import RUN_ID, AttemptLayout, HostLayout, RunLayout
from llmctl.wire.records import Lease, NodeExit, StopRequest
from llmctl.wire.specs import NodeSpec
from llmctl.wire.states import NodeState
from llmctl.wire.supervision import ENDED, Supervision

T = TypeVar("T")

AGENT_DIED = "the agent died (killed, or the host rebooted)"


def host_layout(workdir: str) -> HostLayout:
    """The layout below `workdir` as the host spells it: `~` expanded, links resolved, so that the run
    directory in a process's environment compares equal whoever asks."""
    return HostLayout(os.path.realpath(os.path.expanduser(workdir)))


def find(host: HostLayout, run_id: str) -> RunLayout:
    """The directory of a run. Raises NotFoundError."""
    run = host.run(run_id)
    if not RUN_ID.match(run_id) or not os.path.isdir(run.root):
        raise NotFoundError(f"no run {run_id} in {host.workdir}", hint="llmctl status lists the runs")
    return run


def read_spec(run: RunLayout) -> NodeSpec | None:
    """node.json, or None where `start` has not come that far. Raises IntegrityError."""
    text = atomic.read(run.node_spec)
    return None if text is None else codec.loads(NodeSpec, text)


def read_lease(run: RunLayout) -> Lease | None:
    """lease.json, or None where it is missing or damaged."""
    found = _lenient(Lease, run.lease)
    if found is None and os.path.exists(run.lease):
        time.sleep(0.01)  # on a full disk it is written over in place: look again
        found = _lenient(Lease, run.lease)
    return found


def read_exit(attempt: AttemptLayout) -> NodeExit | None:
    """exit.json, or None where it is missing or damaged."""
    return _lenient(NodeExit, attempt.exit)


def read_stop(run: RunLayout) -> StopRequest | None:
    """stop.json, or None where it is missing or damaged."""
    return _lenient(StopRequest, run.stop_request)


def read_supervision(run: RunLayout) -> Supervision | None:
    """supervisor.json, or None where it is missing or damaged."""
    return _lenient(Supervision, run.supervisor)


def supervised(run: RunLayout) -> bool:
    """There is a supervisor that may start another attempt."""
    held = read_supervision(run)
    if held is None:  # not heard yet, or there is none
        spec = read_spec(run)
        return spec is not None and spec.epoch > 0
    return held.phase != ENDED


def refuse_replaced(run: RunLayout, epoch: int, holder: str = "") -> None:
    """Raises ReplacedError where `epoch` is that of a supervisor which another one has replaced."""
    held = read_supervision(run)
    if held is not None and held.refuses(epoch, holder):
        raise ReplacedError(f"another supervisor acts for this run (epoch {held.epoch}, on {held.where})")


def stop_written_at(run: RunLayout) -> float | None:
    """When stop.json came to be, Unix time; None where there is none."""
    try:
        return os.stat(run.stop_request).st_mtime
    except OSError:
        return None


def _lenient(kind: type[T], path: str) -> T | None:
    try:
        text = atomic.read(path)
        return None if text is None else codec.loads(kind, text)
    except (IntegrityError, OSError):
        return None


@dataclass(frozen=True)
class View:
    """One run at one moment.

    Attributes:
        lease: of the spec's attempt; None before the agent's first.
        exit: the verdict; where the agent died without one, what must be concluded from that.
        recorded: `exit` is on disk.
    """

    run: RunLayout
    spec: NodeSpec
    state: NodeState
    agent_alive: bool
    lease: Optional[Lease]
    exit: Optional[NodeExit]
    recorded: bool

    @property
    def attempt(self) -> AttemptLayout:
        return self.run.attempt(self.spec.attempt)

    @property
    def group(self) -> Group:
        """The run's processes as a process outside of it finds them."""
        roots = (self.lease.agent_pid,) if self.agent_alive and self.lease else ()
        return Group(
            run_id=self.spec.run_id,
            run_dir=self.run.root,
            roots=roots,
            cgroup=recall_cgroup(self.attempt),
        )


def look(run: RunLayout) -> View | None:
    """The run now; None where it has no node.json yet. Raises IntegrityError for a damaged one."""
    spec = read_spec(run)
    if spec is None:
        return None
    held = read_lease(run)
    if held is not None and held.attempt != spec.attempt:
        held = None
    alive = lease.holder_alive(held)
    pending = alive or guarded(run.attempt(spec.attempt))
    ended = read_exit(run.attempt(spec.attempt))  # after the look at the processes: they may just have ended
    state = ended.state if ended else _state_without_exit(run, held, pending)
    view = View(
        run=run,
        spec=spec,
        state=state,
        agent_alive=alive,
        lease=held,
        exit=ended,
        recorded=ended is not None,
    )
    return _concluded(view) if state is NodeState.FAILED and ended is None else view


def _state_without_exit(run: RunLayout, held: Lease | None, pending: bool) -> NodeState:
    """`pending`: somebody lives who will write the verdict, the agent or its guard."""
    if pending and held is not None:
        return NodeState.RUNNING if held.state.ended else held.state
    if held is None and _start_in_progress(run):
        return NodeState.STARTING
    return NodeState.FAILED


def _concluded(view: View) -> View:
    """A dead agent without a verdict, seen on its own host: the run has failed, whatever still runs."""
    left = tuple(f"pid {ref.pid} ({one.name})" for ref, one in view.group.members().items())
    verdict = NodeExit(
        state=NodeState.FAILED,
        code=1,
        reason=AGENT_DIED,
        ended_at=view.lease.t if view.lease else view.spec.created_at,
        ranks=rankfiles.exits(view.attempt),
        left=left,
    )
    return View(
        run=view.run,
        spec=view.spec,
        state=NodeState.FAILED,
        agent_alive=False,
        lease=view.lease,
        exit=verdict,
        recorded=False,
    )


@contextmanager
def locked(run: RunLayout, *, deadline_s: float, name: str = ".lock") -> Iterator[None]:
    """One `start` or `stop` of a run at a time. `name`: another lock. Raises DeadlineError, OSError."""
    path = os.path.join(run.root, name)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + deadline_s
    try:
        while not _try_lock(fd, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise DeadlineError(f"another start or stop of this run holds {path}")
            time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def claim_guard(attempt: AttemptLayout) -> int:
    """Hold the guard's lock; returns its descriptor, which no child may keep open. Raises OSError."""
    fd = os.open(_guard_path(attempt), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)  # whoever asks `guarded` holds it for a moment only
    return fd


def guarded(attempt: AttemptLayout) -> bool:
    """A guard lives that writes the verdict when the agent can't."""
    return _is_locked(_guard_path(attempt))


def _guard_path(attempt: AttemptLayout) -> str:
    return os.path.join(attempt.root, ".guard")


def _start_in_progress(run: RunLayout) -> bool:
    return _is_locked(_lock_path(run))


def _is_locked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_path(run: RunLayout) -> str:
    return os.path.join(run.root, ".lock")
