"""`relay`: take files from the operator or from a peer, and hand them on to peers while they still come.

One process per host and transfer. Its port is open for as long as the transfer lasts, and gives nothing to a
peer that does not show the one-time token, which came by SSH. What arrives is checked by its hash and renamed
into place; a peer that got bytes which turn out to be wrong finds that out by the same hash.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import select
import socket
import sys
import threading
from collections.abc import Callable

from llmctl.errors import IntegrityError, TransferError
from llmctl.node.relayfiles import Shelf
from llmctl.wire import codec
from llmctl.wire.environments import (
    RelayFetch,
    RelayHello,
    RelayReply,
    RelayRequest,
    RelayWanted,
)

STALL_S = 60.0
"""No byte, or no peer, for so long: it has failed."""

CONNECT_S = 5.0
_BLOCK = 1 << 20
_TURN_S = 0.2
_LINE = 1 << 24


def relay() -> None:
    """The whole conversation on stdin and stdout. Raises TransferError, IntegrityError, OSError."""
    stdin = sys.stdin.buffer
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("0.0.0.0", 0))  # noqa: S104 - any interface may be the peers'; the token guards it
        listener.listen(64)
        _say(RelayHello(port=listener.getsockname()[1]))
        request = codec.loads(RelayRequest, stdin.readline(_LINE))
        with Shelf(os.path.expanduser(request.folder), request.blobs, request.places) as shelf:
            _say(RelayWanted(missing=tuple(blob.sha256 for blob in shelf.missing), free=shelf.free()))
            serving = _Serving(listener, request, shelf)
            serving.start()
            source = _receive(request, shelf, stdin.read)
            _say(RelayReply(bytes=sum(blob.size for blob in shelf.missing), source=source))
            serving.until_served(stdin.fileno())


def _receive(request: RelayRequest, shelf: Shelf, from_operator: Callable[[int], bytes]) -> str:
    """Everything that is missing, from where the request says; the address it came from, or nothing."""
    if not shelf.missing:
        return ""
    if not request.sources:
        shelf.fill(from_operator)
        return ""
    address, peer = _connect(request)
    with peer:
        fetch = RelayFetch(token=request.token, missing=tuple(blob.sha256 for blob in shelf.missing))
        peer.sendall(codec.dumps(fetch).encode() + b"\n")
        shelf.fill(peer.recv)
    return address


def _connect(request: RelayRequest) -> tuple[str, socket.socket]:
    reasons = []
    for address in request.sources:
        try:
            peer = socket.create_connection((address, request.port), CONNECT_S)
        except OSError as error:
            reasons.append(f"{address}: {error.strerror or error}")
            continue
        peer.settimeout(STALL_S)
        return address, peer
    raise TransferError(
        f"the host that has the files can't be reached at port {request.port} ({'; '.join(reasons)})",
        hint="open TCP between the hosts, or leave --fan-out away",
    )


class _Serving:
    """Hands the files to peers, each in a thread of its own."""

    def __init__(self, listener: socket.socket, request: RelayRequest, shelf: Shelf) -> None:
        self._listener = listener
        self._request = request
        self._shelf = shelf
        self._changed = threading.Condition()
        self._served = 0

    def start(self) -> None:
        if self._request.children:
            threading.Thread(target=self._accept, daemon=True).start()

    def until_served(self, stdin: int) -> None:
        """Until every child was served, or the operator, who knows which of them will come, closes stdin."""
        while True:
            with self._changed:
                if self._served >= self._request.children:
                    return
            readable, _, _ = select.select([stdin], [], [], _TURN_S)
            if readable and not os.read(stdin, 1):
                return

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            peer.settimeout(STALL_S)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError, IntegrityError, TransferError):
            fetch = codec.loads(RelayFetch, _line_of(peer))
            if not hmac.compare_digest(fetch.token.encode(), self._request.token.encode()):
                return
            for sha in fetch.missing:
                self._shelf.hand_on(sha, peer)
            peer.shutdown(socket.SHUT_WR)
            peer.recv(1)  # its end: it has everything, and nothing of ours is still on its way
            with self._changed:
                self._served += 1


def _line_of(peer: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = peer.recv(_BLOCK)
        line += data
        if not data or len(line) > _LINE:
            raise TransferError("no request")
    return line


def _say(value: object) -> None:
    sys.stdout.write(codec.dumps(value) + "\n")
    sys.stdout.flush()
