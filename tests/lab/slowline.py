"""A TCP proxy for a line that is slow, and that can die without a word: not one byte more, nothing closed."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from tests.lab.flipper import Flipper

PIECE = 8 << 10


@dataclass(kw_only=True)
class SlowLine(Flipper):
    """Forwards connections at `rate` bytes per second, all of them together; 0: never again."""

    rate: float = float("inf")
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _free_at: float = 0.0

    def _pump(self, source: socket.socket, sink: socket.socket, damage: bool) -> None:
        # A small buffer: else the kernel takes in what the line has yet to carry.
        source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
        with suppress(OSError):
            while data := source.recv(PIECE):
                if self.rate == 0:
                    return  # the sockets stay open
                time.sleep(self._booked(len(data)))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _booked(self, size: int) -> float:
        """Seconds until the line has carried `size` more bytes."""
        with self._turn:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size / self.rate
            return self._free_at - now
