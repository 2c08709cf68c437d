"""events.jsonl: what happened to the run on this host, in order, numbered without gaps."""

from __future__ import annotations

import os
import time

from llmctl.errors import IntegrityError
from llmctl.node import tail
from llmctl.wire import codec
from llmctl.wire.layout import RunLayout
from llmctl.wire.records import Event, EventKind

_MOST_PENDING = 1000


class Journal:
    """Appends events. Those that don't fit on a full disk wait in memory for the next time."""

    def __init__(self, run: RunLayout, attempt: int) -> None:
        """Continue after the last whole line, whoever wrote it. Raises OSError."""
        self._attempt = attempt
        self._pending: list[str] = []
        self._fd = os.open(run.events, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._cut_half_line(run)
        last = last_event(run)
        self._seq = last.seq if last else 0

    def add(
        self,
        kind: EventKind,
        *,
        rank: int | None = None,
        pid: int | None = None,
        code: int | None = None,
        signal: str | None = None,
        detail: str = "",
    ) -> None:
        """One more event, now."""
        self._seq += 1
        event = Event(
            seq=self._seq,
            t=time.time(),
            kind=kind.value,
            attempt=self._attempt,
            rank=rank,
            pid=pid,
            code=code,
            signal=signal,
            detail=detail,
        )
        self._pending.append(codec.dumps(event) + "\n")
        self.flush()

    def flush(self) -> None:
        """Write what waits; a line is there whole or not at all."""
        data = "".join(self._pending).encode()
        if not data:
            return
        before = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, data)
        except OSError:
            written = 0
        if written == len(data):
            self._pending.clear()
        elif written:
            os.ftruncate(self._fd, before)
        del self._pending[_MOST_PENDING:]

    def _cut_half_line(self, run: RunLayout) -> None:
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            with open(run.events, "rb") as file:
                whole = file.read().rfind(b"\n") + 1
            os.ftruncate(self._fd, whole)


def last_event(run: RunLayout) -> Event | None:
    """The newest readable event, or None."""
    for line in tail.lines_backwards(run.events, limit=256 * 1024):
        try:
            return codec.loads(Event, line)
        except IntegrityError:
            continue
    return None
