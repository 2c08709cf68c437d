"""One large file as parts, a few of them under way at once, in memory that does not grow with the file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from llmctl.storage.deadline import budget, working_for

PARALLEL = 4
"""Parts of one file under way at once."""

IN_MEMORY = 16
"""Parts of all files of this process under way at once: with their size, the memory that uploads take."""

_LOOK_S = 0.5

_room = threading.BoundedSemaphore(IN_MEMORY)

Send = Callable[[int, bytes], Any]


def send_parts(send: Send, source: BinaryIO, size: int) -> list[Any]:
    """What `send(number, bytes)` returned for each part of `size` bytes of `source`, by number (from 1).

    Raises:
        whatever the first `send` that failed raised; parts under way are then not waited for.
    """
    sending = _Sending(send)
    number = 0
    while data := source.read(size):
        number += 1
        if not sending.start(number, data):
            break
    return sending.results()


class _Sending:
    """Threads of their own, daemons: one that is stuck in a socket keeps neither us nor the process."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._budget = budget()
        self._free = threading.Semaphore(PARALLEL)
        self._done: dict[int, Any] = {}
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._running = 0

    def start(self, number: int, data: bytes) -> bool:
        """Whether part `number` is under way; False: another one has failed."""
        while not self._free.acquire(timeout=_LOOK_S):
            self._budget.check()
        while not _room.acquire(timeout=_LOOK_S):
            self._budget.beat()  # others move; they stall in their own time
        with self._changed:
            if self._error is not None:
                _room.release()
                return False
            self._running += 1
        threading.Thread(target=self._work, args=(number, data), name="llmctl-part", daemon=True).start()
        return True

    def results(self) -> list[Any]:
        with self._changed:
            self._changed.wait_for(lambda: not self._running or self._error is not None)
        if self._error is not None:
            raise self._error
        return [self._done[number] for number in sorted(self._done)]

    def _work(self, number: int, data: bytes) -> None:
        found, error = None, None
        try:
            with working_for(self._budget):
                found = self._send(number, data)
        except BaseException as caught:  # noqa: BLE001 - carried over to the waiting thread
            error = caught
        _room.release()
        self._free.release()
        with self._changed:
            self._done[number] = found
            self._error = self._error or error
            self._running -= 1
            self._changed.notify_all()
