"""What a process asks of the kernel, with as few imports as the rank shim can afford.

Among it are two prctl calls that the standard library lacks: die with the parent, and adopt orphans. Where
ctypes or the call is missing both do nothing, and the agent finds its processes by their environment and by
its cgroup alone.
"""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent() -> None:
    """SIGKILL to this process when its parent dies. Kept over exec, lost over fork.

    The caller must check afterwards that the parent was still there: it may have died before the call.
    """
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def adopt_orphans() -> None:
    """Processes whose parents die below this one become its children, however often they fork."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    try:
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return


def start_of(pid: int) -> str:
    """When process `pid` began (field 22 of its stat), which with the pid names it; empty: no such one."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def restore_signals() -> None:
    """Default handling before an exec: Python ignores SIGPIPE, and a mask would be inherited."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if hasattr(signal, "SIGXFSZ"):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def exit_code(status: int) -> tuple[int, str | None]:
    """A wait status as (code, signal name); killed by signal n: 128+n."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return 128 + number, signal_name(number)
    return os.WEXITSTATUS(status), None


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; a real-time signal has a number only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def close_inherited(keep: tuple[int, ...] = ()) -> None:
    """Close every descriptor above stderr, so that whoever waits for their end gets it."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                continue  # the listing's own descriptor


def to_null_and(log: str) -> None:
    """stdin and stdout to /dev/null, stderr to `log` (or /dev/null where it can't be opened)."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        err = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        err = null
    sys.stdout.flush()
    for fd, target in ((null, 0), (null, 1), (err, 2)):
        os.dup2(fd, target)
    for fd in {null, err}:
        os.close(fd)
