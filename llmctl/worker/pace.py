"""How far this rank has come and how fast by its own work: progress-<rank>.json (wire/progress.py).

The time that a rank spends in sums with others is left out of its own: in a synchronous job every rank's step
takes as long as the slowest's, and only the own part tells which one that is.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from llmctl.wire import environment
from llmctl.wire.codec import encode
from llmctl.wire.layout import AttemptLayout
from llmctl.wire.progress import SAVING, STEPPING, Progress

WINDOW = 20
"""Steps that the means are taken over."""

_LENGTH = 512


class Pace:
    """Writes one rank's progress over itself, always of the same length: a few microseconds, so that the file
    tells the very last step of a rank that stands still. A full disk stops nothing.

    Args:
        path: where to; None: nowhere, and nothing is done.
    """

    def __init__(self, path: str | None, rank: int) -> None:
        self._path = path
        self._rank = rank
        self._file: int | None = None
        self._recent: deque[tuple[float, float | None, float | None]] = deque(maxlen=WINDOW)
        self._last = Progress(rank=rank, t=0.0, step=0)
        self._ticked = time.monotonic()

    @classmethod
    def of_rank(cls, rank: int, env: Mapping[str, str] = os.environ) -> Pace:
        """That of a rank inside of a run; elsewhere one that does nothing."""
        folder = env.get(environment.ATTEMPT_DIR)
        return cls(AttemptLayout(folder).progress(rank) if folder else None, rank)

    def tick(self, step: int, total: int | None) -> None:
        """One more step is done, by somebody who measures nothing: since the last tick."""
        now = time.monotonic()
        took_s, self._ticked = now - self._ticked, now
        self.step(step, total, took_s=took_s)

    def step(
        self,
        step: int,
        total: int | None,
        *,
        took_s: float,
        own_s: float | None = None,
        data_s: float | None = None,
    ) -> None:
        """One more step is done; seconds as in Progress."""
        first = self._last.steps == 0
        if not first:  # the first one warms everything up
            self._recent.append((took_s, own_s, data_s))
        step_s, mean_own_s, mean_data_s = (_mean([one[n] for one in self._recent]) for n in range(3))
        self._last = Progress(
            rank=self._rank,
            t=time.time(),
            step=step,
            total=total,
            steps=self._last.steps + 1,
            step_s=step_s,
            own_s=mean_own_s,
            data_s=mean_data_s,
            longest_s=0.0 if first else max(self._last.longest_s, took_s),
        )
        self._write(STEPPING)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around a checkpoint: it may take long, and has deadlines of its own."""
        self._write(SAVING)
        try:
            yield
        finally:
            self._write(STEPPING)

    def _write(self, phase: str) -> None:
        if self._path is None:
            return
        document = {**encode(self._last), "t": time.time(), "phase": phase}
        with suppress(OSError):
            if self._file is None:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._file, json.dumps(document).ljust(_LENGTH).encode(), 0)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
