"""Finished shards travel into the store while the next one is made; told of in order, once they are there."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from llmctl.errors import LlmctlError
from llmctl.storage.faults import explained
from llmctl.storage.files import Store

T = TypeVar("T")

IN_FLIGHT = 2
"""Shards on their way at once: bounds the disk that waiting ones take."""


class Uploads(Generic[T]):
    """A context manager; `done` is called in the caller's thread, in the order of `add`.

    So a journal that `done` writes never names a shard behind one that is not in the store.
    """

    def __init__(self, store: Store, done: Callable[[T], None]) -> None:
        self._store = store
        self._done = done
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="llmctl-upload")
        self._flying: deque[tuple[T, Future[None]]] = deque()

    def __enter__(self) -> Uploads[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is under way ends by the store's own deadlines; its local file must stay until then, and what
        # arrives counts, so that a run which is stopped again and again gets on.
        self._threads.shutdown(wait=True, cancel_futures=True)
        with suppress(LlmctlError, CancelledError):
            self.finish()

    def add(self, item: T, files: Sequence[Path]) -> None:
        """Send `files`, each under its own name, and remove them; waits while IN_FLIGHT are under way.

        Raises:
            TransferError, DeadlineError: one that was added before could not be stored.
        """
        while len(self._flying) >= IN_FLIGHT:
            self._land()
        self._flying.append((item, self._threads.submit(self._send, tuple(files))))

    def finish(self) -> None:
        """Wait until all are in the store. Raises as `add`."""
        while self._flying:
            self._land()

    def _land(self) -> None:
        item, future = self._flying.popleft()
        future.result()
        self._done(item)

    def _send(self, files: tuple[Path, ...]) -> None:
        for local in files:
            if self._store.local_root is not None:
                _move(local, self._store.local_root / local.name)
            else:
                self._store.put_file(local, local.name)
                local.unlink()


def _move(local: Path, target: Path) -> None:
    """The work folder lies in the destination where that is a disk: a rename saves a copy."""
    with explained("write", str(target)):
        with local.open("rb+") as stream:
            os.fsync(stream.fileno())
        local.replace(target)
