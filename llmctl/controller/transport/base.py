"""What every way to a host can do. Two implementations: `ssh.py` and `local.py`; one contract suite.

Commands are argument lists; each transport quotes them once. Success is the exit status, and a
command that a signal ended is reported as such (`Completed.signal`), never as a lost connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

READ = 512 << 10
"""Size of reads where much data comes. Measured over SSH: smaller costs more turns of Python's lock, all
that a window holds (2 MiB) more memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A finished remote command. `code` is 128+n and `signal` its name where signal n ended it."""

    code: int
    stdout: bytes = b""
    stderr: bytes = b""
    signal: str | None = None

    @property
    def ok(self) -> bool:
        return self.code == 0

    def stderr_tail(self, lines: int = 3) -> str:
        """The last lines of stderr joined into one, for an error message."""
        text = self.stderr.decode(errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in text[-lines:])


class Stream(Protocol):
    """A running remote command. Leaving the `with` block closes it; the remote end sees EOF or SIGHUP."""

    def write(self, data: bytes, *, deadline_s: float) -> None:
        """Send all of `data` to the command's stdin. Raises DeadlineError, HostUnreachableError."""

    def end_input(self) -> None:
        """EOF on the command's stdin."""

    def read(self, size: int, *, deadline_s: float) -> bytes:
        """Up to `size` bytes of stdout; b"" at EOF. Raises DeadlineError, HostUnreachableError."""

    def wait(self, *, deadline_s: float) -> Completed:
        """The exit status, with the stderr seen so far (at most 64 KiB); stdout is the caller's."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Pipe(Protocol):
    """Bytes both ways to a TCP port that a host reaches: a socket, or a channel that is like one.

    Errors are those of a socket: OSError, TimeoutError.
    """

    def recv(self, size: int, /) -> bytes:
        """Up to `size` bytes; b"" at the end."""

    def sendall(self, data: bytes, /) -> None:
        """All of `data`."""

    def shutdown(self, how: int, /) -> None:
        """End one direction, as a socket's."""

    def close(self) -> None: ...


class Transport(Protocol):
    """An open way to one host. Thread-safe: several commands may run at once (at most 8 channels).

    Every method raises HostUnreachableError when the connection is lost and DeadlineError when the
    deadline passes; both carry `host` and `stage`.
    """

    @property
    def host(self) -> str:
        """The inventory name."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Iterable[bytes] = b"",
        deadline_s: float,
        stage: str,
    ) -> Completed:
        """Run to the end, all output in memory (meant for small replies)."""

    def open(self, argv: Sequence[str], *, stage: str, deadline_s: float = 15.0) -> Stream:
        """Start a command whose input and output are streamed; the deadline covers the start only."""

    def forward(self, address: str, port: int, *, stage: str, deadline_s: float = 15.0) -> Pipe:
        """Connect from the host to a TCP port, as `ssh -L` does. Raises RemoteCommandError for a refusal."""

    def close(self) -> None:
        """End the connection. Processes on the host that have their own session live on."""
