"""Sending frames: lines of JSON on stdout, to a reader who may be gone, or slow, or never read again."""

from __future__ import annotations

import os
import select
import time

from llmctl.wire.codec import dumps
from llmctl.wire.records import Frame

_STUCK_S = 60.0
"""Who takes nothing for so long has lost us: the command must not linger on the host."""


class ReaderGone(Exception):
    """Nobody reads our stdout any more."""


class FrameWriter:
    """Writes frames to a descriptor and notices when its reader is gone."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_blocking(fd, False)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self.last_sent = 0.0

    def send(self, frame: Frame) -> None:
        """Raises ReaderGone."""
        view = memoryview(dumps(frame).encode() + b"\n")
        deadline = time.monotonic() + _STUCK_S
        while view:
            view = view[self._write_some(view, deadline) :]
        self.last_sent = time.monotonic()

    def _write_some(self, view: memoryview, deadline: float) -> int:
        try:
            return os.write(self._fd, view)
        except BlockingIOError:
            if not self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise ReaderGone from None
            return 0
        except OSError:
            raise ReaderGone from None

    def check(self) -> None:
        """Raises ReaderGone where the pipe's other end is closed, without writing."""
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in self._poll.poll(0)):
            raise ReaderGone
