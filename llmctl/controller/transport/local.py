"""`addr: local`: the same promises as SSH, over processes on this machine.

Each command has its own process group and starts in the home directory, as a login would.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from llmctl.controller.transport.base import Completed
from llmctl.controller.transport.command import STDERR_KEPT, completed, wrapped
from llmctl.controller.transport.deadline import Deadline
from llmctl.controller.transport.running import run_to_end
from llmctl.errors import DeadlineError, HostUnreachableError, RemoteCommandError

MAX_CHANNELS = 8
_LOGIN_ENV = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TMPDIR")
"""What a command gets of our environment: as little as an SSH login would, so that both behave alike."""


class LocalTransport:
    """`Transport` without a network. See `base.Transport` for the promises."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._slots = threading.BoundedSemaphore(MAX_CHANNELS)
        self._closed = False

    @property
    def host(self) -> str:
        return self._host

    @property
    def alive(self) -> bool:
        return not self._closed

    def run(
        self, argv: Sequence[str], *, stdin: bytes | Iterable[bytes] = b"", deadline_s: float, stage: str
    ) -> Completed:
        deadline = Deadline(deadline_s)
        with self.open(argv, stage=stage, deadline_s=deadline_s) as stream:
            return run_to_end(stream, stdin, deadline)

    def open(self, argv: Sequence[str], *, stage: str, deadline_s: float = 15.0) -> LocalStream:
        if self._closed:
            raise HostUnreachableError("the connection was closed", host=self._host, stage=stage)
        if not self._slots.acquire(timeout=deadline_s):
            raise DeadlineError(f"no free channel within {deadline_s:g} s", host=self._host, stage=stage)
        try:
            process = _start(argv)
        except BaseException:
            self._slots.release()
            raise
        return LocalStream(self._host, process, stage, self._slots.release)

    def forward(self, address: str, port: int, *, stage: str, deadline_s: float = 15.0) -> socket.socket:
        try:
            found = socket.create_connection((address, port), timeout=deadline_s)
        except OSError as error:
            message = f"{address}:{port}: {error.strerror or 'no answer'}"
            raise RemoteCommandError(message, host=self._host, stage=stage) from None
        found.settimeout(None)
        return found

    def close(self) -> None:
        self._closed = True


def _start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    env = {name: os.environ[name] for name in _LOGIN_ENV if name in os.environ}
    pipe = subprocess.PIPE
    home = Path.home()
    return subprocess.Popen(
        wrapped(argv),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        bufsize=0,
        env=env,
        cwd=home if home.is_dir() else "/",  # as sshd does for a login without a home
        process_group=0,
    )


class LocalStream:
    """`Stream` over a child's pipes; a thread drains stderr, as in the SSH one."""

    def __init__(
        self, host: str, process: subprocess.Popen[bytes], stage: str, release: Callable[[], None]
    ) -> None:
        self._host = host
        self._process = process
        self._stage = stage
        self._release = release
        self._stdin, self._stdout, self._err = _pipes(process)
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        # Held while a pipe's number is used: once closed, the number may be that of another file.
        self._using = threading.Lock()
        self._closing = threading.Lock()
        self._closed = False
        self._stderr = bytearray()
        self._drain = threading.Thread(target=self._drain_stderr, daemon=True)
        self._drain.start()

    def write(self, data: bytes, *, deadline_s: float) -> None:
        deadline = Deadline(deadline_s)
        view = memoryview(data)
        while view:
            try:
                if not _ready(self._stdin, deadline, select.POLLOUT):
                    raise self._late(deadline)
                with self._using:
                    view = view[os.write(self._stdin.fileno(), view) :]
            except BlockingIOError:
                continue
            except (BrokenPipeError, ValueError):  # ValueError: closed by another thread
                message = "the command ended early"
                raise RemoteCommandError(message, host=self._host, stage=self._stage) from None

    def end_input(self) -> None:
        with self._using:
            self._stdin.close()

    def read(self, size: int, *, deadline_s: float) -> bytes:
        deadline = Deadline(deadline_s)
        while True:
            try:
                if not _ready(self._stdout, deadline, select.POLLIN):
                    raise self._late(deadline)
                with self._using:
                    return os.read(self._stdout.fileno(), min(size, 1 << 20))
            except BlockingIOError:  # another thread was first
                continue
            except ValueError:  # closed by another thread
                return b""

    def wait(self, *, deadline_s: float) -> Completed:
        deadline = Deadline(deadline_s)
        try:
            code = self._process.wait(deadline.left)
        except subprocess.TimeoutExpired:
            raise self._late(deadline) from None
        self._drain.join(max(deadline.left, 0.2))
        return completed(code if code >= 0 else 128 - code, stderr=bytes(self._stderr))

    def close(self) -> None:
        """What still runs of the command is told with SIGHUP, as when a login ends."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        try:
            with self._using:
                self._stdin.close()
                self._stdout.close()
            if self._process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGHUP)
                _reap(self._process)
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drain_stderr(self) -> None:
        with self._err:
            while data := os.read(self._err.fileno(), STDERR_KEPT):
                self._stderr += data
                del self._stderr[:-STDERR_KEPT]

    def _late(self, deadline: Deadline) -> DeadlineError:
        message = f"not done within {deadline.seconds:g} s"
        return DeadlineError(message, host=self._host, stage=self._stage)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise ValueError("started without pipes")
    return process.stdin, process.stdout, process.stderr


def _ready(pipe: IO[bytes], deadline: Deadline, event: int) -> bool:
    poll = select.poll()
    poll.register(pipe.fileno(), event)
    return bool(poll.poll(deadline.left * 1000))


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Collect the child when it ends, without making the caller wait for one that ignores SIGHUP."""
    threading.Thread(target=process.wait, daemon=True).start()
