"""The agent's sign of life: lease.json names one process for certain, and whether it still exists."""

from __future__ import annotations

import os
import time

from llmctl.node import atomic, procs
from llmctl.wire.codec import dumps
from llmctl.wire.layout import RunLayout
from llmctl.wire.records import Lease
from llmctl.wire.states import NodeState

_LENGTH = 512


class LeaseKeeper:
    """Rewrites lease.json every `every_s` seconds, and at once when the state changes."""

    def __init__(self, run: RunLayout, *, attempt: int, every_s: float) -> None:
        self.state = NodeState.STARTING
        self._path = run.lease
        self._attempt = attempt
        self._every_s = every_s
        self._me = procs.ref_of(os.getpid())
        self._boot_id = procs.boot_id()
        self._due = 0.0

    def take(self) -> None:
        """The first lease; without it there is no run. Raises OSError."""
        self._write()

    def renew(self) -> None:
        """Write when due. A full disk must not end a job that only needs memory and a network."""
        if time.monotonic() < self._due:
            return
        try:
            self._write()
        except OSError:
            self._write_over()

    def enter(self, state: NodeState) -> None:
        """Say at once that the node's state is another."""
        if state is not self.state:
            self.state = state
            self._due = 0.0
            self.renew()

    def _write(self) -> None:
        atomic.write(self._path, self._text())
        self._due = time.monotonic() + self._every_s

    def _write_over(self) -> None:
        self._due = time.monotonic() + self._every_s
        try:
            atomic.overwrite(self._path, self._text())
        except OSError:
            return  # nothing to write on at all; the process itself still shows that it lives

    def _text(self) -> str:
        """Always of the same length, so that one text covers another."""
        lease = Lease(
            t=time.time(),
            attempt=self._attempt,
            state=self.state,
            agent_pid=self._me.pid,
            agent_start=self._me.start,
            boot_id=self._boot_id,
        )
        return dumps(lease).ljust(_LENGTH)


def holder(lease: Lease) -> procs.ProcRef:
    """The process that a lease names."""
    return procs.ProcRef(pid=lease.agent_pid, start=lease.agent_start)


def holder_alive(lease: Lease | None) -> bool:
    """The agent named by the lease runs, on this very boot of the host."""
    if lease is None or lease.boot_id != procs.boot_id():
        return False
    return procs.alive(holder(lease))
