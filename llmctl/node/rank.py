"""`rank`: the shim between the launcher and one real rank.

The launcher (torchrun, or the agent) starts it with RANK and LOCAL_RANK in the environment:

    PYTHON -I -S AGENT.pyz rank AGENT_PID AGENT_START COMMAND…

It starts COMMAND with its output in the rank's own log, passes signals on, records how the command
ended and ends the same way itself. It is on every job's way to its first step, so it imports little
before the command runs; the rest is imported while that starts.
"""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from llmctl.node.atomic import Reserved

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_RECORD_BYTES = 1024


def main(argv: list[str]) -> int:
    """Run `argv[2:]` as a rank below the agent `argv[0]`, started at `argv[1]`. Returns its exit code."""
    from llmctl.node import kernel

    kernel.die_with_parent()
    if kernel.start_of(int(argv[0])) != argv[1]:
        return 128 + signal.SIGKILL  # it died before the line above: nobody would end us any more
    if os.getsid(0) != os.getpid() and os.getpgrp() != os.getpid():
        os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_FORWARDED, signal.SIGCHLD))
    records = _Records()
    started = time.time()
    pid = _start(argv[2:])
    records.begin(pid, started)
    status = _wait(pid)
    records.finish(status)
    return _leave(status)


def _start(command: list[str]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _become(command, parent)
        except OSError as error:
            _say(f"llmctl: cannot start {command[0]}: {error.strerror}")
        finally:
            os._exit(127)
    return pid


def _become(command: list[str], parent: int) -> None:
    from llmctl.node import kernel

    os.setpgid(0, 0)  # forwarded signals reach the rank's helpers too, and each process once
    _redirect()
    kernel.restore_signals()
    kernel.die_with_parent()
    if os.getppid() == parent:
        os.execvp(command[0], command)  # noqa: S606


def _redirect() -> None:
    folder = os.environ["LLMCTL_ATTEMPT_DIR"]
    log = os.path.join(folder, f"rank-{os.environ['RANK']}.log")
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _wait(pid: int) -> int:
    """Pass signals on until `pid` has ended; its wait status."""
    while True:
        number = signal.sigwait((*_FORWARDED, signal.SIGCHLD))
        if number != signal.SIGCHLD:
            _forward(pid, number)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status


def _forward(pid: int, number: int) -> None:
    """To the rank's group; to itself in the moment before it has one."""
    for deliver in (os.killpg, os.kill):
        try:
            deliver(pid, number)
        except ProcessLookupError:
            continue
        return


def _leave(status: int) -> int:
    """End as the rank did: the launcher then reports its true code or signal."""
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    import resource

    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the rank's own core is the one of interest
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.kill(os.getpid(), number)
    return 128 + number


class _Records:
    """.rank-<n>.start.json and rank-<n>.json: room is taken before the rank can fill the disk."""

    def __init__(self) -> None:
        from llmctl.node import atomic

        folder = os.environ["LLMCTL_ATTEMPT_DIR"]
        rank = os.environ["RANK"]
        self._start_file = atomic.Reserved(os.path.join(folder, f".rank-{rank}.start.json"), _RECORD_BYTES)
        self._exit_file = atomic.Reserved(os.path.join(folder, f"rank-{rank}.json"), _RECORD_BYTES)

    def begin(self, pid: int, started: float) -> None:
        """The rank runs. What is imported here is imported beside the rank's own start."""
        from llmctl.node import rankfiles
        from llmctl.wire.codec import dumps

        self._start = rankfiles.RankStart(
            rank=int(os.environ["RANK"]),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            pid=pid,
            started_at=started,
        )
        _commit(self._start_file, dumps(self._start))

    def finish(self, status: int) -> None:
        """It has ended."""
        from llmctl.node import rankfiles
        from llmctl.wire.codec import dumps

        _commit(self._exit_file, dumps(rankfiles.ended(self._start, status, time.time())))


def _commit(file: Reserved, text: str) -> None:
    try:
        file.commit(text)
    except OSError as error:
        _say(f"llmctl: not recorded: {error}")


def _say(text: str) -> None:
    """To launcher.log; no room there must not change how this process ends."""
    try:
        os.write(2, text.encode() + b"\n")
    except OSError:
        return
