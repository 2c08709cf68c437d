"""The front's connection to one replica's rank 0: orders out, answers in (wire/infer.py)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from llmctl.errors import HostUnreachableError, IntegrityError
from llmctl.wire import codec
from llmctl.wire.infer import MAX_LINE, Answer, Order
from llmctl.worker.infer.deadline import bounded

CONNECT_S = 15.0
KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""A host that lost its power sends no goodbye: the kernel asks after 5 s, and gives up after 15 more."""


class ReplicaClient:
    """One authenticated connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, address: str, port: int, token: str) -> ReplicaClient:
        """Raises HostUnreachableError."""
        try:
            opened = asyncio.open_connection(address, port, limit=MAX_LINE)
            reader, writer = await bounded(opened, CONNECT_S)
        except (OSError, asyncio.TimeoutError) as error:
            raise HostUnreachableError(f"no replica at {address}:{port}: {error}", stage="infer") from None
        watch_peer(writer)
        writer.write(token.encode() + b"\n")
        return cls(reader, writer)

    def send(self, order: Order) -> None:
        """Queue one order; a lost connection shows as the end of `answers`."""
        if not self._writer.is_closing():
            self._writer.write(codec.dumps(order).encode() + b"\n")

    async def answers(self) -> AsyncIterator[Answer]:
        """Until the connection ends, or what comes is no answer."""
        while True:
            try:
                line = await self._reader.readline()
                if not line.endswith(b"\n"):
                    return
                yield codec.loads(Answer, line)
            except (OSError, ValueError, IntegrityError):
                return

    async def close(self) -> None:
        """At once: a replica that hangs would never take what is still on its way."""
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def watch_peer(writer: asyncio.StreamWriter) -> None:
    """Have the kernel notice a peer that is gone without a word, and send small lines at once."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
