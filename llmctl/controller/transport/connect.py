"""Dial one host: sockets, jumps, handshake, host key, login. Every step within one deadline.

What goes wrong becomes one line with the host, the stage `connect` and what to do.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paramiko

from llmctl.controller.transport import knownhosts
from llmctl.controller.transport.deadline import Deadline
from llmctl.controller.transport.identities import identities
from llmctl.controller.transport.knownhosts import OfferedKey
from llmctl.controller.transport.sshconfig import SshTarget
from llmctl.errors import HostUnreachableError

# What paramiko logs is told by our errors; without a handler Python would print it on stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

STAGE = "connect"
KEEPALIVE_S = 15
SILENCE_S = 30
"""Unanswered bytes make the kernel give the connection up after this long (a pulled cable says nothing)."""

_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
_REKEY_BYTES = 1 << 38  # measured: a re-key in a long transfer can stall it for 30 s; GCM is safe far beyond
_REKEY_PACKETS = 1 << 32
_ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


class Wire:
    """The socket below paramiko, with a deadline per writing thread.

    paramiko retries a write for ever while the peer takes no bytes; here it ends at the thread's deadline.
    The packet is then cut, so the connection is of no use any more.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._limits = threading.local()

    def limit(self, deadline: Deadline | None) -> None:
        """Until when the calling thread may block in writes."""
        self._limits.deadline = deadline

    def send(self, data: bytes) -> int:
        try:
            return int(self._sock.send(data))
        except TimeoutError:
            deadline = getattr(self._limits, "deadline", None)
            if deadline is not None and deadline.passed:
                raise ConnectionAbortedError(errno.ECONNABORTED, "no byte was taken in time") from None
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Link:
    """An authenticated SSH connection and the jumps below it."""

    def __init__(self, client: paramiko.Transport, wire: Wire, below: Link | None) -> None:
        self.client = client
        self.wire = wire
        self._below = below

    @property
    def alive(self) -> bool:
        return self.client.is_active()

    @property
    def host_key(self) -> OfferedKey:
        """The key that the server proved to have."""
        return _key_of(self.client)

    def close(self) -> None:
        self.client.close()
        if self._below:
            self._below.close()


def dial(target: SshTarget, *, timeout_s: float) -> Link:
    """Connect and log in, through the target's jumps.

    Raises:
        HostUnreachableError: refused, timed out, unknown name, no accepted key.
        HostIdentityError: the host key is not the known one.
    """
    deadline = Deadline(timeout_s)
    below: Link | None = None
    try:
        for hop in (*target.jumps, target):
            below = _hop(hop, below, deadline)
    except BaseException:
        if below:
            below.close()
        raise
    assert below is not None  # noqa: S101 - the loop ran at least once
    return below


def offered_key(target: SshTarget, *, timeout_s: float = 10.0) -> OfferedKey:
    """The key that the host shows to a stranger; nobody logs in (but to the jumps before it)."""
    deadline = Deadline(timeout_s)
    below: Link | None = None
    try:
        for hop in target.jumps:
            below = _hop(hop, below, deadline)
        client, _ = _handshake(target, below, deadline)
        try:
            return _key_of(client)
        finally:
            client.close()
    finally:
        if below:
            below.close()


def _hop(target: SshTarget, below: Link | None, deadline: Deadline) -> Link:
    client, wire = _handshake(target, below, deadline)
    try:
        knownhosts.check(target, _key_of(client))
        _login(client, target, deadline)
    except BaseException:
        client.close()
        raise
    client.set_keepalive(KEEPALIVE_S)
    return Link(client, wire, below)


def _key_of(client: paramiko.Transport) -> OfferedKey:
    key = client.get_remote_server_key()
    return OfferedKey(type=key.get_name(), base64=key.get_base64())


# Sockets


def _handshake(target: SshTarget, below: Link | None, deadline: Deadline) -> tuple[paramiko.Transport, Wire]:
    """Protocol banner and key exchange; nobody is trusted yet."""
    wire = Wire(_through(below, target, deadline) if below else _tcp(target, deadline))
    wire.limit(deadline)
    client = paramiko.Transport(wire)  # type: ignore[arg-type]
    _prefer(client, target)
    client.banner_timeout = client.handshake_timeout = client.auth_timeout = max(deadline.left, 0.1)
    try:
        with _told(target, deadline):
            client.start_client(timeout=deadline.left)
            _require(client.initial_kex_done)
    except BaseException:
        client.packetizer.complete_handshake()  # else its timer thread keeps this process alive
        client.close()
        raise
    return client, wire


def _require(done: bool) -> None:
    """start_client returns in silence when its time is over."""
    if not done:
        raise TimeoutError


def _prefer(client: paramiko.Transport, target: SshTarget) -> None:
    options = client.get_security_options()
    options.ciphers = [cipher for cipher in _CIPHERS if cipher in options.ciphers]
    known = [a for kind in knownhosts.known_types(target) for a in _ALGORITHMS.get(kind, (kind,))]
    usable = [kind for kind in known if kind in options.key_types]
    options.key_types = list(dict.fromkeys((*usable, *options.key_types)))
    client.packetizer.REKEY_BYTES = _REKEY_BYTES
    client.packetizer.REKEY_PACKETS = _REKEY_PACKETS


def _tcp(target: SshTarget, deadline: Deadline) -> socket.socket:
    """The first address that accepts, whatever its family."""
    with _told(target, deadline):
        error: OSError = TimeoutError()
        for family, kind, protocol, _, address in _addresses(target, deadline):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(max(deadline.left, 0.01))
                sock.connect(address)
            except OSError as refused:
                sock.close()
                error = refused
                continue
            _tune(sock)
            return sock
        raise error


def _tune(sock: socket.socket) -> None:
    """No Nagle (3.5 times faster round trips), and a dead peer is noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_S),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", SILENCE_S * 1000),
    ):
        if hasattr(socket, option):  # not on every operator's system
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _addresses(target: SshTarget, deadline: Deadline) -> list[Any]:
    """getaddrinfo has no timeout of its own: it runs in a thread that is left behind."""
    found: list[Any] = []
    failed: list[OSError] = []

    def look_up() -> None:
        try:
            found.extend(socket.getaddrinfo(target.hostname, target.port, type=socket.SOCK_STREAM))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(deadline.left)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError
    return found


def request_exec(client: paramiko.Transport, channel: paramiko.Channel, command: bytes) -> None:
    """Ask for a command without waiting for a reply.

    paramiko's exec_command waits for one without a deadline, so a hung host would hang us; and the
    reply says nothing that the exit status does not. It also saves a round trip.
    """
    request = paramiko.Message()
    request.add_byte(paramiko.common.cMSG_CHANNEL_REQUEST)
    request.add_int(channel.remote_chanid)
    request.add_string("exec")
    request.add_boolean(False)
    request.add_string(command)
    client._send_user_message(request)  # type: ignore[attr-defined]


def _through(below: Link, target: SshTarget, deadline: Deadline) -> paramiko.Channel:
    """A forwarded connection from the jump host.

    sshd switches Nagle off on its side only once a session runs: without one each round trip takes 40 ms.
    """
    try:
        session = below.client.open_session(timeout=deadline.left)
        request_exec(below.client, session, b":")
        return below.client.open_channel(
            "direct-tcpip", (target.hostname, target.port), ("127.0.0.1", 0), timeout=deadline.left
        )
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _unreachable(target, f"the jump host could not connect: {error}") from None


# Login


def _login(client: paramiko.Transport, target: SshTarget, deadline: Deadline) -> None:
    tried: list[str] = []
    unusable: list[str] = []
    agent = paramiko.Agent() if target.use_agent else None
    try:
        for identity in identities(target, agent):
            if identity.key is None:
                unusable.append(f"{identity.label} {identity.why}")
            elif _accepted(client, target, identity.key, deadline):
                return
            else:
                tried.append(identity.label)
            if not client.is_active():
                break  # the server allows only so many tries
    finally:
        if agent:
            agent.close()
    raise _no_key(target, tried, unusable)


def _accepted(client: paramiko.Transport, target: SshTarget, key: paramiko.PKey, deadline: Deadline) -> bool:
    client.auth_timeout = max(deadline.left, 0.1)
    try:
        with _told(target, deadline):
            client.auth_publickey(target.user, key)
    except paramiko.AuthenticationException:
        return False
    return client.is_authenticated()


def _no_key(target: SshTarget, tried: list[str], unusable: list[str]) -> HostUnreachableError:
    offered = f"tried {', '.join(tried)}" if tried else "there was no key to try"
    message = "; ".join((f"{target.user}@{target.address} accepted no key: {offered}", *unusable))
    encrypted = [text for text in unusable if "encrypted" in text]
    hint = (
        f"ssh-add {encrypted[0].split(' is ')[0]}"
        if encrypted
        else "set user and identity_file in hosts.yaml"
    )
    return _unreachable(target, message, hint)


# Errors


@contextmanager
def _told(target: SshTarget, deadline: Deadline) -> Iterator[None]:
    """Turn what sockets and paramiko raise into one line that says which of the usual troubles it is."""
    try:
        yield
    except paramiko.AuthenticationException as error:
        if "timeout" not in str(error).lower():
            raise
        raise _timed_out(target) from None
    except socket.gaierror as error:
        hint = "check `addr` in hosts.yaml, or the name service"
        raise _unreachable(target, f"{target.hostname}: {error.strerror}", hint) from None
    except ConnectionRefusedError:
        raise _unreachable(
            target, f"{target.address} refused the connection", "is sshd running, and on this port?"
        ) from None
    except TimeoutError:
        raise _timed_out(target) from None
    except (paramiko.SSHException, EOFError, OSError) as error:
        if deadline.passed:
            raise _timed_out(target) from None
        raise _unreachable(target, f"{target.address}: {_reason(error)}") from None


def _timed_out(target: SshTarget) -> HostUnreachableError:
    return _unreachable(target, f"{target.address} did not answer in time", "is it up, and is the port open?")


def _reason(error: BaseException) -> str:
    if isinstance(error, EOFError):
        return "the connection was closed during the handshake"
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _unreachable(target: SshTarget, message: str, hint: str | None = None) -> HostUnreachableError:
    return HostUnreachableError(message, hint=hint, host=target.name, stage=STAGE)
