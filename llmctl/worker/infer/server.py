"""The door of a replica: TCP connections of the front, JSON lines in both directions.

Threads read and write; the engine's own loop takes orders from one queue and never waits for a peer.
"""

from __future__ import annotations

import hmac
import json
import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from llmctl.errors import IntegrityError
from llmctl.wire.codec import dumps, loads
from llmctl.wire.infer import ADD, CANCEL, ERROR, MAX_LINE, OPS, TASKS, Answer, Order

GREETING_S = 10.0
"""How long a new connection may take to say its token."""

MAX_PENDING = 100_000
"""Answers that may wait for one connection; a peer so far behind is given up."""


@dataclass(frozen=True, slots=True, eq=False)
class Inbound:
    """An order and who it is from; order None: the connection is gone."""

    connection: Connection
    order: Order | None


class Connection:
    """One peer that has said the token."""

    def __init__(self, sock: socket.socket, inbox: queue.SimpleQueue[Inbound]) -> None:
        self._sock = sock
        self._inbox = inbox
        self._outbox: queue.Queue[bytes | None] = queue.Queue(MAX_PENDING)
        self._writer = threading.Thread(target=self._write, name="replica-write", daemon=True)
        self.open: set[str] = set()
        """Ids whose last answer has not been sent; the engine's thread keeps it."""

    def start(self) -> None:
        """Read and write from now on."""
        self._writer.start()
        threading.Thread(target=self._read, name="replica-read", daemon=True).start()

    def send(self, answer: Answer) -> None:
        """Put an answer on its way; never waits."""
        try:
            self._outbox.put_nowait(dumps(answer).encode() + b"\n")
        except queue.Full:
            self.close()

    def finish(self, timeout_s: float) -> None:
        """Close when all answers are written, or when the time is up."""
        try:
            self._outbox.put(None, timeout=timeout_s)
        except queue.Full:
            self.close()
        self._writer.join(timeout_s)

    def close(self) -> None:
        """Give the peer up."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def _write(self) -> None:
        while (line := self._outbox.get()) is not None:
            try:
                self._sock.sendall(line)
            except OSError:
                break
        self.close()

    def _read(self) -> None:
        try:
            for line in _lines(self._sock):
                self._take(line)
        finally:
            self._inbox.put(Inbound(self, None))
            self.close()

    def _take(self, line: bytes) -> None:
        try:
            order = loads(Order, line)
            problem = _problem(order)
        except IntegrityError as error:
            order, problem = Order(op="", id=_id_of(line)), error.message
        if problem is None:
            self._inbox.put(Inbound(self, order))
        else:
            self.send(Answer(id=order.id, finish=ERROR, error=problem))


def _problem(order: Order) -> str | None:
    """What is wrong with an order by itself."""
    if order.op not in OPS:
        return f"no order {order.op!r}"
    if order.op in (ADD, CANCEL) and not order.id:
        return "no id"
    if order.op != ADD:
        return None
    if order.task not in TASKS:
        return f"no task {order.task!r}"
    try:
        order.sampling.check()
    except ValueError as error:
        return str(error)
    return None


def _id_of(line: bytes) -> str:
    """The id in a line that is no good order, so that its sender can find it."""
    try:
        document = json.loads(line)
    except ValueError:
        return ""
    found = document.get("id", "") if isinstance(document, dict) else ""
    return found if isinstance(found, str) else ""


def _lines(sock: socket.socket) -> Iterator[bytes]:
    """Whole lines until the peer closes or one is longer than MAX_LINE."""
    rest = b""
    while len(rest) <= MAX_LINE:
        try:
            block = sock.recv(1 << 16)
        except OSError:
            return
        if not block:
            return
        *whole, rest = (rest + block).split(b"\n")
        yield from whole


class Door:
    """Listens, and lets in who says the token.

    Attributes:
        inbox: orders of all connections.
        port: where it listens.
    """

    def __init__(self, host: str, port: int, token: str) -> None:
        self.inbox: queue.SimpleQueue[Inbound] = queue.SimpleQueue()
        self._token = token.encode()
        self._listener = socket.create_server((host, port), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.connections: set[Connection] = set()

    def open(self) -> None:
        """Let peers in from now on."""
        threading.Thread(target=self._accept, name="replica-door", daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._greet, args=(sock,), name="replica-greet", daemon=True).start()

    def _greet(self, sock: socket.socket) -> None:
        """The first line is the token, or the connection ends without a word."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(GREETING_S)
        said = _first_line(sock)
        if not hmac.compare_digest(said, self._token):
            sock.close()
            return
        sock.settimeout(None)
        connection = Connection(sock, self.inbox)
        self.connections.add(connection)
        connection.start()


def _first_line(sock: socket.socket) -> bytes:
    """Byte by byte: what follows belongs to the reader of orders."""
    said = b""
    while len(said) < 4096:
        try:
            byte = sock.recv(1)
        except OSError:
            return b""
        if byte in (b"", b"\n"):
            return said
        said += byte
    return b""
