"""Server processes of a lab: started in the foreground with a log, waited for, and ended by pid."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

STOP_S = 20.0
START_S = 90.0
"""For a server or a command of its lab on a machine that does much else; idle ones need 5 s."""

TRIES = 3


class ServerError(RuntimeError):
    """A server did not start or a command of its lab failed."""


@dataclass(kw_only=True)
class Daemon:
    """One server process; it may be killed and started again on the same data.

    Attributes:
        argv: the command, which must stay in the foreground.
        log: gets its stdout and stderr.
    """

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str]
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _frozen: bool = field(default=False, init=False)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        if self.alive:
            return
        # If the test process dies by whatever means, the kernel ends its servers.
        argv = ["setpriv", "--pdeathsig", "KILL", "--", *self.argv]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(self.env)
            )

    def kill9(self) -> None:
        """As a power cut would: nothing is flushed, nobody is told."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """It keeps its sockets and answers nothing."""
        self._frozen = True
        self._signal(signal.SIGSTOP)

    def thaw(self) -> bool:
        """Whether it was frozen."""
        was, self._frozen = self._frozen, False
        self._signal(signal.SIGCONT)
        return was

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return f"{self.name}: " + " | ".join(lines[-5:])

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._signal(number)
        self._signal(signal.SIGCONT)  # a frozen one would not see it
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)
        self._process = None


def wait_for(what: str, ready: Callable[[], bool], within_s: float, *daemons: Daemon) -> None:
    """Poll until `ready`.

    Raises:
        ServerError: the time is over, or one of `daemons` died.
    """
    end = time.monotonic() + within_s
    while not ready():
        dead = [daemon for daemon in daemons if not daemon.alive]
        if dead or time.monotonic() > end:
            words = "; ".join(daemon.last_words() for daemon in dead or daemons)
            raise ServerError(f"{what}: {'died' if dead else f'not within {within_s:g} s'}: {words}")
        time.sleep(0.05)


@contextmanager
def started(up: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """What `up` starts; started anew when it fails, as another process may take a port that was free.

    Raises:
        ServerError: the last of TRIES failures.
    """
    with ExitStack() as stack:
        for turn in range(TRIES):
            try:
                lab = stack.enter_context(up())
                break
            except ServerError:
                if turn + 1 == TRIES:
                    raise
        yield lab


def run(argv: Sequence[str], env: Mapping[str, str], within_s: float = START_S) -> str:
    """Stdout of a command that must succeed.

    Raises:
        ServerError: it failed or took too long.
    """
    try:
        done = subprocess.run(
            argv, env=dict(env), capture_output=True, text=True, timeout=within_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ServerError(f"{argv[0]}: not done within {within_s:g} s") from None
    if done.returncode:
        raise ServerError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that nobody listens on, below the range of outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        candidate = secrets.choice(range(20000, 32000))  # other runs on this machine look for theirs, too
        if candidate in found:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            found.append(candidate)
    return found


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def clean_environment() -> dict[str, str]:
    """Without what belongs to a virtual environment: Debian's `ceph` needs Debian's Python."""
    kept = ("HOME", "LANG", "TMPDIR", "JAVA_HOME")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    return {**env, "PATH": "/usr/bin:/usr/sbin:/bin:/sbin"}
