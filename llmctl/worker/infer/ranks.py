"""The rank processes of one host: started, watched and ended, each replica for itself.

Every rank is a session of its own, so that a signal to it reaches its helpers too and nobody else; they stay
processes of the run (by their environment), so a stop of the agent finds what this program could not end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from llmctl.wire.codec import loads
from llmctl.wire.infer import ReplicaReady, why_file
from llmctl.worker.infer.orders import Ended, Exited, RankSlot, Ready, Report, Start

POLL_S = 0.05
END_S = 10.0
"""From SIGTERM to SIGKILL where a replica is ended in peace."""

Command = Callable[[Start, RankSlot, Path], "tuple[list[str], dict[str, str]]"]
"""(order, rank, its ready file) -> (argument list, what its environment has beside the host's)."""


class Ranks:
    """All replicas' ranks on this host.

    Args:
        folder: where ready files go.
        command: how a rank is started.
        report: takes what happens, called in the event loop.
    """

    def __init__(self, folder: Path, command: Command, report: Callable[[Report], None]) -> None:
        self._folder = folder
        self._command = command
        self._report = report
        self._running: dict[tuple[int, int], dict[int, asyncio.subprocess.Process]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, order: Start) -> None:
        """Start the ranks that `order` names; what becomes of them is reported."""
        key = (order.replica, order.generation)
        mine = self._running.setdefault(key, {})
        for place in order.ranks:
            ready = self._folder / f"replica-{order.replica}-{order.generation}-{place.rank}.ready"
            ready.unlink(missing_ok=True)
            words = Path(why_file(str(ready)))
            words.unlink(missing_ok=True)
            argv, env = self._command(order, place, ready)
            process = await asyncio.create_subprocess_exec(
                *argv, env={**os.environ, **env}, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
            )
            mine[place.rank] = process
            self._spawn(self._watch(key, place.rank, process, words))
            if place.rank == 0:
                self._spawn(self._await_ready(key, process, ready))

    async def end(self, replica: int, generation: int, *, grace_s: float = 0.0) -> None:
        """End a replica's ranks here; returns when none is left. Fine where there is none."""
        processes = list(self._running.get((replica, generation), {}).values())
        if grace_s:
            for process in processes:
                _signal(process, signal.SIGTERM)
            await _gone(processes, grace_s)
        for process in processes:
            _signal(process, signal.SIGKILL)
        await _gone(processes, END_S)
        self._report(Ended(replica=replica, generation=generation))

    async def end_all(self, *, grace_s: float) -> None:
        """End everything; a stopped (SIGSTOP) rank takes no SIGTERM, so it costs the whole grace."""
        await asyncio.gather(*(self.end(*key, grace_s=grace_s) for key in list(self._running)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(
        self, key: tuple[int, int], rank: int, process: asyncio.subprocess.Process, words: Path
    ) -> None:
        code = await process.wait()
        _signal_group(process.pid, signal.SIGKILL)  # helpers that it left behind
        (self._folder / f"replica-{key[0]}-{key[1]}-{rank}.sock").unlink(missing_ok=True)  # vLLM's
        self._running.get(key, {}).pop(rank, None)
        code = code if code >= 0 else 128 - code
        why = words.read_text() if words.exists() else ""
        self._report(Exited(replica=key[0], generation=key[1], rank=rank, code=code, why=why))

    async def _await_ready(
        self, key: tuple[int, int], process: asyncio.subprocess.Process, ready: Path
    ) -> None:
        while process.returncode is None:
            if ready.exists():  # it was written beside and renamed
                told = loads(ReplicaReady, ready.read_text())
                self._report(Ready(replica=key[0], generation=key[1], ready=told))
                return
            await asyncio.sleep(POLL_S)


def free_port(address: str) -> int:
    """A TCP port of `address` that nobody listens on now. Raises OSError."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    if process.returncode is None:
        _signal_group(process.pid, number)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


async def _gone(processes: list[asyncio.subprocess.Process], seconds: float) -> None:
    waits = [asyncio.ensure_future(process.wait()) for process in processes]
    if waits:
        await asyncio.wait(waits, timeout=seconds)
        for wait in waits:
            wait.cancel()
