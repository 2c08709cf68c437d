"""A port on this machine's loopback that leads to a port of a host: `ssh -L`, over the connection there is.

Each client gets a channel of its own. A connection that was lost is made anew for the next client, so the
tunnel outlives it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

from llmctl.controller.transport.base import Pipe
from llmctl.controller.transport.pool import Connections
from llmctl.errors import ConfigError, LlmctlError

LOOPBACK = "127.0.0.1"
STAGE = "tunnel"
CHUNK = 64 << 10
MOST_CLIENTS = 256
_POLL_S = 0.5


class Tunnel:
    """Open from its making until `close`.

    Attributes:
        port: where it listens on this machine.
    """

    def __init__(self, connections: Connections, host: str, address: str, port: int, *, listen: int) -> None:
        """`listen`: port on this machine, 0: any free one. Raises ConfigError where it is taken."""
        self._connections, self._host = connections, host
        self._address, self._port = address, port
        self._server = _listening(listen)
        self.port: int = self._server.getsockname()[1]
        self._closed = threading.Event()
        self._slots = threading.BoundedSemaphore(MOST_CLIENTS)
        self._thread = threading.Thread(target=self._accept, name="tunnel", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more clients; those there are end with this process or the connection."""
        self._closed.set()
        self._thread.join(2 * _POLL_S)
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._server.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                client.close()
                continue
            client.settimeout(None)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        """One client: two directions, until both have ended. A refusal ends its connection."""
        try:
            with client:
                try:
                    transport = self._connections.get(self._host)
                    far = transport.forward(self._address, self._port, stage=STAGE)
                except LlmctlError:
                    return
                back = threading.Thread(target=_pump, args=(far, client), daemon=True)
                back.start()
                _pump(client, far)
                back.join()
                far.close()
        finally:
            self._slots.release()


def _listening(port: int) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((LOOPBACK, port))
    except OSError as error:
        server.close()
        raise ConfigError(
            f"port {port} of this machine: {error.strerror}", hint="choose another with --port, or --port 0"
        ) from None
    server.listen()
    server.settimeout(_POLL_S)
    return server


def _pump(source: Pipe | socket.socket, target: Pipe | socket.socket) -> None:
    """Bytes from one to the other; its end is passed on, an error ends both."""
    try:
        while data := source.recv(CHUNK):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except (OSError, EOFError):
        for end in (source, target):
            with contextlib.suppress(OSError, EOFError):
                end.shutdown(socket.SHUT_RDWR)
