"""Every process of one run on this host, and how they are ended.

torchrun puts each worker into a session of its own, and scripts start helpers that detach: a process
group is not enough. So three nets are cast: descendants of the agent (which adopts orphans), the run's
directory in a process's environment, and the run's cgroup.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from llmctl.node import atomic, cgroup, procs
from llmctl.wire import environment as names
from llmctl.wire.layout import AttemptLayout

KILL_DEADLINE_S = 10.0
"""How long SIGKILL may take to show: a process in uninterruptible I/O can't be ended by anyone."""


@dataclass(frozen=True)
class Swept:
    """`ended`: processes that were asked or made to end. `killed`: those that needed SIGKILL.

    `left`: what is still there.
    """

    ended: int
    killed: int
    left: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """The processes of the run in `run_dir`, seen from this process.

    Attributes:
        roots: pids whose descendants belong to the run; they themselves do not.
        cgroup: folder of the run's cgroup, or None.
    """

    run_id: str
    run_dir: str
    roots: tuple[int, ...] = ()
    cgroup: str | None = None

    def members(self) -> dict[procs.ProcRef, procs.ProcStat]:
        """Those that run now; never this process, those above it, or a root."""
        processes = procs.table()
        marks = (f"{names.RUN_ID}={self.run_id}".encode(), f"{names.RUN_DIR}={self.run_dir}".encode())
        found = procs.with_environment(marks, processes) | cgroup.pids(self.cgroup)
        for root in self.roots:
            found |= procs.descendants(root, processes)
        found -= procs.ancestors(os.getpid(), processes)
        found -= set(self.roots)
        running = (processes[pid] for pid in found if pid in processes and processes[pid].running)
        return {one.ref: one for one in running}


def sweep(group: Group, *, grace_s: float, tick: Callable[[float], None]) -> Swept:
    """SIGTERM to all, SIGKILL after `grace_s`, until none is left or the deadline has passed.

    Args:
        tick: waits for the given seconds at most and does what must go on meanwhile (reaping).
    """
    asked: set[procs.ProcRef] = set()
    deadline = time.monotonic() + grace_s
    _until_gone(group, asked, signal.SIGTERM, deadline, tick, again=False)
    killed: set[procs.ProcRef] = set()
    _until_gone(group, killed, signal.SIGKILL, time.monotonic() + KILL_DEADLINE_S, tick, again=True)
    left = tuple(procs.describe(one) for one in group.members().values())
    return Swept(ended=len(asked | killed) - len(left), killed=len(killed), left=left)


def _until_gone(
    group: Group,
    signalled: set[procs.ProcRef],
    number: int,
    deadline: float,
    tick: Callable[[float], None],
    *,
    again: bool,
) -> None:
    """Signal each member once (or `again` and again), until there is none or the deadline is over."""
    pause = 0.01
    while True:
        members = group.members()
        if not members or time.monotonic() >= deadline:
            return
        for ref in members:
            if again or ref not in signalled:
                procs.send(ref, number)
                signalled.add(ref)
        tick(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(pause * 2, 0.25)


def remember_cgroup(attempt: AttemptLayout, path: str | None) -> None:
    """For a `stop` that finds the agent dead. Best effort: one net of three."""
    if path is None:
        return
    try:
        atomic.write(_cgroup_note(attempt), path)
    except OSError:
        return


def recall_cgroup(attempt: AttemptLayout) -> str | None:
    """The run's cgroup folder as its agent noted it."""
    try:
        note = atomic.read(_cgroup_note(attempt))
    except OSError:
        return None
    return note.decode() if note else None


def _cgroup_note(attempt: AttemptLayout) -> str:
    return os.path.join(attempt.root, ".cgroup")
