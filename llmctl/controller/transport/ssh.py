"""Commands over one SSH connection: exec channels, at most eight at once, each call within its deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

import paramiko

from llmctl.controller.transport.base import Completed
from llmctl.controller.transport.command import STDERR_KEPT, completed, quoted
from llmctl.controller.transport.connect import Link, request_exec
from llmctl.controller.transport.deadline import Deadline
from llmctl.controller.transport.knownhosts import OfferedKey
from llmctl.controller.transport.running import run_to_end
from llmctl.errors import DeadlineError, HostUnreachableError, LlmctlError, RemoteCommandError

MAX_CHANNELS = 8
"""sshd allows 10 by default; a closed channel keeps its slot there while its process lives."""

_POLL_S = 0.2
_CHUNK = 32704
"""What fits one packet of an OpenSSH server (32 KiB less paramiko's reserve)."""

_CLOSE_S = 2.0

_MALLOC_KEEPS = 8 << 20
"""Freeing a block of this size once teaches glibc to keep blocks up to it, instead of having paramiko's
buffers and every large read mapped from the system anew. Elsewhere it does nothing."""


class SshTransport:
    """`Transport` over an authenticated connection. See `base.Transport` for the promises."""

    def __init__(self, host: str, link: Link) -> None:
        self._host = host
        self._link = link
        self._slots = threading.BoundedSemaphore(MAX_CHANNELS)
        bytes(_MALLOC_KEEPS)

    @property
    def host(self) -> str:
        return self._host

    @property
    def alive(self) -> bool:
        """False once the connection is known to be lost."""
        return self._link.alive

    @property
    def host_key(self) -> OfferedKey:
        """The key that the server proved to have."""
        return self._link.host_key

    def run(
        self, argv: Sequence[str], *, stdin: bytes | Iterable[bytes] = b"", deadline_s: float, stage: str
    ) -> Completed:
        deadline = Deadline(deadline_s)
        with self.open(argv, stage=stage, deadline_s=deadline_s) as stream:
            return run_to_end(stream, stdin, deadline)

    def open(self, argv: Sequence[str], *, stage: str, deadline_s: float = 15.0) -> SshStream:
        deadline = Deadline(deadline_s)
        if not self._slots.acquire(timeout=deadline.left):
            raise DeadlineError(f"no free channel within {deadline_s:g} s", host=self._host, stage=stage)
        try:
            channel = self._session(deadline, stage)
            self._execute(channel, quoted(argv), stage)
        except BaseException:
            self._slots.release()
            raise
        return SshStream(self._host, channel, self._link, stage, self._slots.release)

    def forward(self, address: str, port: int, *, stage: str, deadline_s: float = 15.0) -> paramiko.Channel:
        """Not one of the eight: sshd counts only sessions."""
        self._link.wire.limit(Deadline(deadline_s))
        try:
            channel = self._link.client.open_channel(
                "direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=deadline_s
            )
        except (paramiko.SSHException, EOFError, OSError) as error:
            if not self._link.alive:
                raise lost(self._link, self._host, stage) from None
            message = f"{address}:{port} can't be reached from there: {error}"
            raise RemoteCommandError(message, host=self._host, stage=stage) from None
        channel.settimeout(None)
        return channel

    def close(self) -> None:
        self._link.close()

    def _session(self, deadline: Deadline, stage: str) -> paramiko.Channel:
        self._link.wire.limit(deadline)
        pause = threading.Event()
        while True:
            try:
                return self._link.client.open_session(timeout=max(deadline.left, 0.01))
            except (paramiko.SSHException, EOFError, OSError):
                if not self._link.alive:
                    raise lost(self._link, self._host, stage) from None
                if deadline.passed:
                    message = f"no session was opened within {deadline.seconds:g} s"
                    raise DeadlineError(message, host=self._host, stage=stage) from None
            # Refused: the server has no slot left, since one of ours is still ending. (Of refusals at the
            # same time paramiko gives only one thread the ChannelException, so the type says nothing.)
            pause.wait(_POLL_S)

    def _execute(self, channel: paramiko.Channel, command: str, stage: str) -> None:
        channel.settimeout(_POLL_S)
        try:
            request_exec(self._link.client, channel, command.encode(errors="surrogateescape"))
        except (paramiko.SSHException, EOFError, OSError):
            raise lost(self._link, self._host, stage) from None


class SshStream:
    """`Stream` over one exec channel; a thread of its own drains stderr, so that neither side blocks."""

    def __init__(
        self, host: str, channel: paramiko.Channel, link: Link, stage: str, release: Callable[[], None]
    ) -> None:
        self._host = host
        self._channel = channel
        self._link = link
        self._stage = stage
        self._release = release
        self._closing = threading.Lock()
        self._closed = False
        self._stderr = bytearray()
        self._drain = threading.Thread(target=self._drain_stderr, daemon=True)
        self._drain.start()

    def write(self, data: bytes, *, deadline_s: float) -> None:
        deadline = Deadline(deadline_s)
        self._link.wire.limit(deadline)
        start = 0
        while start < len(data):
            sent = self._send(data[start : start + _CHUNK], deadline)
            start += sent

    def end_input(self) -> None:
        self._link.wire.limit(Deadline(_CLOSE_S))
        try:
            self._channel.shutdown_write()
        except (paramiko.SSHException, EOFError, OSError):
            raise self._ended() from None

    def read(self, size: int, *, deadline_s: float) -> bytes:
        deadline = Deadline(deadline_s)
        self._link.wire.limit(deadline)
        while True:
            try:
                data = self._channel.recv(size)
            except TimeoutError:
                if deadline.passed:
                    raise self._late(deadline) from None
                continue
            except (paramiko.SSHException, EOFError, OSError):
                raise lost(self._link, self._host, self._stage) from None
            if not data and not self._channel.eof_received and not self._closed and self._link_is_lost():
                raise lost(self._link, self._host, self._stage)
            return data

    def wait(self, *, deadline_s: float) -> Completed:
        deadline = Deadline(deadline_s)
        if not self._channel.status_event.wait(deadline.left):
            raise self._late(deadline)
        code = self._channel.exit_status
        if code < 0:
            raise self._ended()
        self._drain.join(max(deadline.left, _POLL_S))
        return completed(code, stderr=bytes(self._stderr))

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._link.wire.limit(Deadline(_CLOSE_S))
        try:
            self._channel.close()
        except (paramiko.SSHException, EOFError, OSError):
            self._link.close()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, chunk: bytes, deadline: Deadline) -> int:
        """One packet, or as much as the window takes."""
        while True:
            try:
                sent = self._channel.send(chunk)
            except TimeoutError:
                if deadline.passed:
                    raise self._late(deadline) from None
                continue
            except (paramiko.SSHException, EOFError, OSError):
                if deadline.passed and self._link.alive:
                    self._link.close()  # a packet was cut: nothing that follows could be understood
                    raise self._late(deadline) from None
                raise self._ended() from None
            if not sent:
                raise self._ended()
            return sent

    def _drain_stderr(self) -> None:
        while True:
            try:
                data = self._channel.recv_stderr(STDERR_KEPT)
            except TimeoutError:
                continue
            except (paramiko.SSHException, EOFError, OSError):
                return  # the thread that reads stdout reports it
            if not data:
                return
            self._stderr += data
            del self._stderr[:-STDERR_KEPT]

    def _link_is_lost(self) -> bool:
        """paramiko closes the channels of a lost connection a moment before it says that it is lost."""
        if self._link.alive:
            self._link.client.join(_POLL_S)
        return not self._link.alive

    def _ended(self) -> LlmctlError:
        """Why the channel takes or gives nothing more."""
        if self._link_is_lost():
            return lost(self._link, self._host, self._stage)
        status = self._channel.exit_status
        detail = f"exit {status}" if status >= 0 else "without an exit status: its shell was killed"
        return RemoteCommandError(f"the command ended early ({detail})", host=self._host, stage=self._stage)

    def _late(self, deadline: Deadline) -> DeadlineError:
        message = f"not done within {deadline.seconds:g} s"
        return DeadlineError(message, host=self._host, stage=self._stage)


def lost(link: Link, host: str, stage: str) -> HostUnreachableError:
    """The error of a connection that ended under a command."""
    reason = link.client.get_exception()
    detail = f": {reason}" if reason and str(reason) else ""
    hint = "what was started there goes on; try again"
    return HostUnreachableError(f"the connection was lost{detail}", hint=hint, host=host, stage=stage)
