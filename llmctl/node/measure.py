"""`measure`: a short-lived listener and client, by which hosts measure the network between them.

It ends when stdin does, that is with the SSH connection, and takes peers only that show its one-time token.
Receivers do the counting: what a sender has handed to its kernel may be far from arriving.
"""

from __future__ import annotations

import errno
import hmac
import select
import signal
import socket
import struct
import sys
import threading
import time

from llmctl.wire import codec
from llmctl.wire.measure import Listening, PathsReply, PathsRequest, Target, WayReply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

LIFE_S = 3600
"""Nobody measures that long: ends a process whose stdin was kept open by accident."""

PINGS = 20
CHUNK = 1 << 20
MOST_PEERS = 4
HEADER_S = 5.0
PATIENCE_S = 10.0
"""For a peer that has said that it is ours and then says nothing."""

WARM_UP = 0.25
"""Share of the time that is not counted: slow start, and the bucket of a rate limiter."""

FEW, LONGER = 4 << 20, 3
"""So few bytes say nothing yet: on a slow link one lost packet stops TCP for 200 ms. Then measure longer."""

PING, SINK, SOURCE = "ping", "sink", "source"
ACCEPTED = b"+"


class StrangerError(OSError):
    """What took the connection does not know our token."""


def measure() -> None:
    """Serve and measure until EOF on stdin."""
    signal.alarm(LIFE_S)
    token = _token()
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen(MOST_PEERS)
        threading.Thread(target=_serve, args=(listener, token), daemon=True).start()
        first, last = _ephemeral()
        _say(Listening(port=listener.getsockname()[1], token=token, first=first, last=last))
        for line in sys.stdin.buffer:
            _say(paths(codec.loads(PathsRequest, line)))


def paths(request: PathsRequest) -> PathsReply:
    """Every target of the request, spare ones only where nothing before them was reached."""
    found: list[WayReply] = []
    for target in request.targets:
        if not (target.spare and any(not way.error for way in found)):
            found.append(_way(request, target))
    return PathsReply(ways=tuple(found))


def _way(request: PathsRequest, target: Target) -> WayReply:
    try:
        rtt, source = _latency(request, target)
    except OSError as error:
        is_open = _knock(target, request) if request.ssh_port else None
        return WayReply(addr=target.addr, source=target.source, error=_why(error), ssh_open=is_open)
    there = back = None
    if request.seconds:
        try:
            there = _send(request, target)
            back = _receive(request, target)
        except (OSError, ValueError):
            return WayReply(addr=target.addr, source=source, rtt_s=rtt, error="broken")
    return WayReply(addr=target.addr, source=source, rtt_s=rtt, there=there, back=back)


def _latency(request: PathsRequest, target: Target) -> tuple[float, str]:
    """(seconds of the shortest round trip, our own address)."""
    with _connect(request, target, PING) as peer:
        best = float("inf")
        until = time.monotonic() + 1.0
        for number in range(PINGS):
            began = time.perf_counter()
            peer.sendall(b".")
            if not peer.recv(1):
                raise ConnectionResetError(errno.ECONNRESET, "closed")
            best = min(best, time.perf_counter() - began)
            if number >= 2 and time.monotonic() > until:
                break
        return best, peer.getsockname()[0]


def _send(request: PathsRequest, target: Target) -> float:
    """Bytes per second that the peer received: it says so as soon as it has seen enough."""
    zeros = memoryview(bytes(CHUNK))
    deadline = time.monotonic() + LONGER * request.seconds + 2 * PATIENCE_S
    with _connect(request, target, SINK) as peer:
        peer.setblocking(False)
        while time.monotonic() < deadline:
            readable, writable, _ = select.select([peer], [peer], [], 1.0)
            if readable:
                return float(peer.recv(64))
            if writable:
                peer.send(zeros)
    raise TimeoutError("the peer did not say how much arrived")


def _receive(request: PathsRequest, target: Target) -> float:
    with _connect(request, target, SOURCE) as peer:
        return received(peer, request.seconds)


def received(peer: socket.socket, seconds: float) -> float:
    """Bytes per second that arrive in `seconds`, the beginning left out; up to LONGER where they are few."""
    room = bytearray(CHUNK)
    if not select.select([peer], [], [], PATIENCE_S)[0]:  # a busy sender begins late: that is no slow link
        return 0.0
    began = time.monotonic()
    warm, enough, end = began + seconds * WARM_UP, began + seconds, began + seconds * LONGER
    total, counted, since, last = 0, 0, began, began
    while (now := time.monotonic()) < (enough if counted > FEW else end):
        if not select.select([peer], [], [], end - now)[0]:
            break
        size = peer.recv_into(room)
        if not size:
            break
        last = time.monotonic()
        total += size
        if last < warm or since == began:
            since = last
        else:
            counted += size
    if counted and last > since:
        return counted / (last - since)
    return total / (last - began) if last > began else 0.0


def _connect(request: PathsRequest, target: Target, mode: str) -> socket.socket:
    """A connection on which the peer has accepted our token; closing it drops what is under way."""
    source = (target.source, 0) if target.source else None
    peer = socket.create_connection((target.addr, request.port), request.connect_s, source)
    try:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.settimeout(PATIENCE_S)
        peer.sendall(f"{request.token} {mode} {request.seconds:.3f}\n".encode())
        _accepted(peer)
    except BaseException:
        peer.close()
        raise
    return peer


def _accepted(peer: socket.socket) -> None:
    if peer.recv(1) != ACCEPTED:
        raise StrangerError("another program answers")


def _knock(target: Target, request: PathsRequest) -> bool:
    source = (target.source, 0) if target.source else None
    try:
        socket.create_connection((target.addr, request.ssh_port), request.connect_s, source).close()
    except OSError:
        return False
    return True


def _why(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, (StrangerError, ConnectionResetError, BrokenPipeError)):
        return "stranger"
    if isinstance(error, TimeoutError) or error.errno in (None, errno.ETIMEDOUT):
        return "silent"  # socket.timeout of Python 3.9 is no TimeoutError and has no number
    return "unreachable"


def _serve(listener: socket.socket, token: str) -> None:
    free = threading.BoundedSemaphore(MOST_PEERS)
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return  # closed: the end
        if free.acquire(blocking=False):
            threading.Thread(target=_answer, args=(peer, token, free.release), daemon=True).start()
        else:
            peer.close()


def _answer(peer: socket.socket, token: str, release: Callable[[], None]) -> None:
    """One connection; whatever is wrong with it, only it ends."""
    try:
        with peer:
            peer.settimeout(HEADER_S)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            words = _header(peer).split()
            if len(words) != 3 or not hmac.compare_digest(words[0], token.encode()):
                return
            peer.sendall(ACCEPTED)
            peer.settimeout(PATIENCE_S)
            _do(peer, words[1].decode(), min(60.0, float(words[2])))
    except (OSError, ValueError):
        return  # the peer's side tells
    finally:
        release()


def _do(peer: socket.socket, mode: str, seconds: float) -> None:
    if mode == PING:
        while data := peer.recv(1):
            peer.sendall(data)
    elif mode == SINK:
        peer.sendall(f"{received(peer, seconds):.1f}".encode())
        _drain(peer)
    elif mode == SOURCE:
        zeros = bytes(CHUNK)
        until = time.monotonic() + LONGER * seconds + 2 * PATIENCE_S
        while time.monotonic() < until:
            peer.send(zeros)


def _drain(peer: socket.socket) -> None:
    """Until the sender has read our number and closed: closing first would reset the number away."""
    until = time.monotonic() + PATIENCE_S
    room = bytearray(CHUNK)
    while time.monotonic() < until and peer.recv_into(room):
        pass


def _header(peer: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < 128:
        byte = peer.recv(1)
        if not byte:
            break
        line += byte
    return line


def _token() -> str:
    import secrets

    return secrets.token_hex(16)


def _ephemeral() -> tuple[int, int]:
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
            first, last = file.read().split()
        return int(first), int(last)
    except (OSError, ValueError):
        return 32768, 60999


def _say(value: object) -> None:
    sys.stdout.write(codec.dumps(value) + "\n")
    sys.stdout.flush()
