"""What others see while a file is replaced, made twice at once, or moved."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from llmctl.errors import IntegrityError
from llmctl.storage.drills.ground import Ground, hold

BLOCK = 200_000
ROUNDS = 10
_SHARE = 0.1


def replace_under_a_reader(ground: Ground) -> str:
    """A reader finds one version, whole, every time."""
    store = ground.store
    store.write_bytes("replaced", _version(0))
    with _Writer(lambda turn: store.write_bytes("replaced", _version(turn))) as writer:
        writer.start()
        reads, versions = 0, set()
        end = ground.until(_SHARE)
        while reads < 10 or (time.monotonic() < end and reads < 500):
            data = store.read_bytes("replaced")
            hold(len(data) == BLOCK and len(set(data)) == 1, "a reader saw a file that was half replaced")
            versions.add(data[0])
            reads += 1
    ground.numbers["replace_reads"] = reads
    return f"replace is one step for a reader: seen in {reads} reads during {writer.turns} replacements"


def two_writers(ground: Ground) -> str:
    """Two that create one file at once: one of them wins, whole."""
    store, end, rounds, told = ground.store, ground.until(_SHARE), 0, 0
    with ThreadPoolExecutor(2) as threads:
        while rounds < 2 or (time.monotonic() < end and rounds < ROUNDS):
            path = f"both-{rounds}"
            both = [threads.submit(store.write_bytes, path, bytes([who]) * BLOCK) for who in (1, 2)]
            losers = [error for one in both if (error := one.exception())]
            for error in losers:
                # Where what was written is read back, the other's bytes are found: a loser that knows it.
                if len(losers) == 2 or not isinstance(error, IntegrityError):
                    raise error
            told += len(losers)
            data = store.read_bytes(path)
            hold(len(data) == BLOCK and len(set(data)) == 1, "two writers at once left a mixture")
            rounds += 1
    note = f"; the other was told {told} times" if told else ""
    return f"two writers at once: one wins, whole, in {rounds} of {rounds} rounds{note}"


def rename(ground: Ground) -> str:
    """Files and folders move whole; whether in one step is the store's to say, and tried where it says so."""
    store = ground.store
    for path in ("old/a", "old/b/c"):
        store.write_bytes(path, path.encode())
    store.rename("old", "new")
    hold([file.path for file in store.list("new")] == ["new/a", "new/b/c"], "a renamed folder lost files")
    hold(store.list("old") == [], "a renamed folder is still at its old place")
    store.write_bytes("source", b"new")
    store.write_bytes("target", b"old")
    store.rename("source", "target")
    hold(store.read_bytes("target") == b"new", "rename did not replace the file at its target")
    hold(not store.exists("source"), "a renamed file is still at its old place")
    if store.atomic_rename:
        return "rename moves files and folders and replaces a file, each in one step"
    return "rename is copy and delete, file by file: llmctl writes a marker last instead"


def _version(turn: int) -> bytes:
    return bytes([turn % 251]) * BLOCK


class _Writer:
    """Calls a function again and again until the block ends; its failure is the block's."""

    def __init__(self, write: Callable[[int], None]) -> None:
        self.turns = 0
        self._write = write
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="llmctl-drill-writer", daemon=True)

    def __enter__(self) -> _Writer:
        return self

    def start(self) -> None:
        """Inside the block: Ctrl-C arrives while the start waits for its thread, too, and has to end that."""
        self._thread.start()

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()  # each write has its deadline
        if self._error is not None and value is None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._write(self.turns + 1)
                self.turns += 1
        except BaseException as error:  # noqa: BLE001 - carried over to the waiting thread
            self._error = error
