"""Batches of one rank, read ahead by a thread, so that training does not wait for data."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from llmctl.errors import DeadlineError
from llmctl.storage.corpus.dataset import ITEM_BYTES
from llmctl.storage.corpus.order import Order, SampleRef, ShardRef
from llmctl.storage.corpus.reader import Reader
from llmctl.wire.parallel import share

WAIT_S = 1800.0
"""How long one batch may take: longer than any store's own deadlines, for a thread that is stuck for good."""

_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One rank's share of one step.

    Attributes:
        step: from 0.
        refs: its samples; none where the global batch is smaller than the number of ranks.
        tokens: len(refs) rows of sequence_length + 1 little-endian items of the manifest's dtype.
    """

    step: int
    refs: list[SampleRef]
    tokens: bytearray


class SampleLoader:
    """Endless iterator of this rank's StepBatches, from `start_step`.

    Whatever goes wrong while reading ahead is raised by the `next()` that would have returned that batch.

    Args:
        depth: batches read ahead.
        shares: see `share`.

    Attributes:
        wait_s: seconds that the last `next()` waited.
    """

    def __init__(
        self,
        reader: Reader,
        order: Order,
        *,
        global_batch: int,
        rank: int,
        world: int,
        start_step: int = 0,
        depth: int = 4,
        shares: Sequence[int] = (),
    ) -> None:
        self.wait_s = 0.0
        self._reader = reader
        self._order = order
        self._global_batch = global_batch
        self._first, self._count = share(global_batch, rank, world, shares)
        self._queue: queue.Queue[StepBatch | BaseException] = queue.Queue(maxsize=max(1, depth))
        self._closed = threading.Event()
        self._ahead: list[ShardRef] = []
        self._thread = threading.Thread(
            target=self._run, args=(start_step,), name="llmctl-loader", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        if self._closed.is_set():
            raise StopIteration
        began = time.monotonic()
        try:
            item = self._queue.get(timeout=WAIT_S)
        except queue.Empty:
            raise DeadlineError(f"no batch within {WAIT_S:.0f} s", stage="data") from None
        finally:
            self.wait_s = time.monotonic() - began
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop reading ahead and wait for the thread; later calls of `next()` end the iteration.

        A read that hangs in a store is left to its own deadline: the thread never keeps a process alive.
        """
        self._closed.set()
        self._thread.join(timeout_s)

    def __enter__(self) -> SampleLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, start_step: int) -> None:
        try:
            for step in count(start_step):
                if not self._put(self._read(step)):
                    return
        except BaseException as error:  # noqa: BLE001 - raised again by next(), in the caller's thread
            self._put(error)

    def _read(self, step: int) -> StepBatch:
        self._prefetch(step)
        length = self._order.sequence_length + 1
        row = length * ITEM_BYTES[self._reader.manifest.dtype]
        refs = self._order.samples(step, self._global_batch, self._first, self._count)
        tokens = bytearray(len(refs) * row)
        for i, ref in enumerate(refs):
            tokens[i * row : (i + 1) * row] = self._reader.read(ref, length)
        return StepBatch(step=step, refs=refs, tokens=tokens)

    def _prefetch(self, step: int) -> None:
        ahead = self._order.shards_from(step * self._global_batch + self._first)
        if ahead != self._ahead:
            self._ahead = ahead
            self._reader.prefetch(ahead)

    def _put(self, item: StepBatch | BaseException) -> bool:
        """False once closed. Polls, because a full queue of a loader that is being closed never empties."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False
