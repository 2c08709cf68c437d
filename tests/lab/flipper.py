"""A TCP proxy that changes what passes through it: bytes damaged on their way to a store."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

MARK = b"damage this byte: ?"
DAMAGED = b"damage this byte: !"


@dataclass(kw_only=True)
class Flipper:
    """Forwards connections; on their way to the server MARKs become DAMAGED while `damages` are left."""

    target: tuple[str, int]
    port: int = 0
    damages: int = 0
    hits: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _sockets: list[socket.socket] = field(default_factory=list)

    @classmethod
    @contextmanager
    def to(cls, target: tuple[str, int], *, host: str = "127.0.0.1", port: int = 0) -> Iterator[Flipper]:
        """A proxy at `host`, on a free port or that one, until the block ends."""
        flipper = cls(target=target)
        with socket.create_server((host, port)) as server:
            flipper.port = server.getsockname()[1]
            accepting = threading.Thread(target=flipper._accept, args=(server,), daemon=True)
            accepting.start()
            try:
                yield flipper
            finally:
                server.shutdown(socket.SHUT_RDWR)  # wakes the accept
                accepting.join(10)
                for one in flipper._sockets:
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
                    one.close()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
                upstream = socket.create_connection(self.target, 10)
            except OSError:
                return
            upstream.settimeout(None)
            self._sockets += [client, upstream]
            for source, sink, damage in ((client, upstream, True), (upstream, client, False)):
                threading.Thread(target=self._pump, args=(source, sink, damage), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, damage: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 18):
                sink.sendall(self._damaged(data) if damage else data)
            sink.shutdown(socket.SHUT_WR)

    def _damaged(self, data: bytes) -> bytes:
        with self._lock:
            if self.damages > 0 and MARK in data:
                self.damages -= 1
                self.hits += 1
                return data.replace(MARK, DAMAGED, 1)
        return data
