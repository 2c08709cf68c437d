"""Processes as the kernel shows them in /proc, always named by pid and start time, never by a bare pid."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProcRef:
    """One process for certain: a pid that is used again has another `start` (field 22 of its stat)."""

    pid: int
    start: str


@dataclass(frozen=True)
class ProcStat:
    """One line of /proc/PID/stat, as far as we need it."""

    ref: ProcRef
    ppid: int
    state: str
    name: str

    @property
    def running(self) -> bool:
        """Not a zombie: one that only waits for its parent holds no memory, port or GPU."""
        return self.state not in ("Z", "X")


def parse_stat(line: str) -> ProcStat:
    """`PID (NAME) STATE PPID …`; the name may hold blanks and brackets of its own."""
    head, _, tail = line.rpartition(")")
    pid, _, name = head.partition(" (")
    fields = tail.split()
    return ProcStat(
        ref=ProcRef(pid=int(pid), start=fields[19]), ppid=int(fields[1]), state=fields[0], name=name
    )


def stat(pid: int) -> ProcStat | None:
    """What runs as `pid` now, or None."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return parse_stat(file.read())
    except (OSError, ValueError, IndexError):
        return None


def ref_of(pid: int) -> ProcRef:
    """The certain name of a process that is known to exist (the caller's own, or its child)."""
    found = stat(pid)
    return found.ref if found else ProcRef(pid=pid, start="")


def alive(ref: ProcRef) -> bool:
    """That very process exists and is no zombie."""
    found = stat(ref.pid)
    return found is not None and found.ref == ref and found.running


def table() -> dict[int, ProcStat]:
    """Every process that we may see, by pid."""
    found = (stat(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {one.ref.pid: one for one in found if one}


def descendants(root: int, processes: dict[int, ProcStat]) -> set[int]:
    """Pids below `root`, any depth, without it."""
    children: dict[int, list[int]] = {}
    for one in processes.values():
        children.setdefault(one.ppid, []).append(one.ref.pid)
    found: set[int] = set()
    todo = [root]
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def ancestors(pid: int, processes: dict[int, ProcStat]) -> set[int]:
    """`pid` and every process above it."""
    found: set[int] = set()
    while pid in processes and pid not in found:
        found.add(pid)
        pid = processes[pid].ppid
    return found


def with_environment(wanted: Iterable[bytes], pids: Iterable[int]) -> set[int]:
    """Those of `pids` that belong to our user and were started with every `NAME=value` of `wanted`."""
    needles = tuple(wanted)
    found = set()
    for pid in pids:
        entries = _environ(pid)
        if entries and all(needle in entries for needle in needles):
            found.add(pid)
    return found


def environment_entry(pid: int, prefix: bytes) -> str | None:
    """What follows `prefix` (`NAME=...`) in the environment that our own process `pid` was started with."""
    found = next((entry for entry in _environ(pid) if entry.startswith(prefix)), None)
    return None if found is None else found[len(prefix) :].decode(errors="replace")


def _environ(pid: int) -> frozenset[bytes]:
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return frozenset()
        with open(f"/proc/{pid}/environ", "rb") as file:
            return frozenset(file.read().split(b"\0"))
    except OSError:
        return frozenset()


def send(ref: ProcRef, number: int) -> bool:
    """Signal that very process; False where it is gone. A pid that was used again is never hit."""
    try:
        fd = os.pidfd_open(ref.pid)
    except ProcessLookupError:
        return False
    except OSError:
        return _send_by_pid(ref, number)  # a kernel before 5.3
    try:
        if not alive(ref):
            return False
        signal.pidfd_send_signal(fd, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(fd)
    return True


def _send_by_pid(ref: ProcRef, number: int) -> bool:
    if not alive(ref):
        return False
    try:
        os.kill(ref.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for that signal; one without it would be ended by most."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            masks = [line.split()[1] for line in file if line.startswith("SigCgt:")]
        return bool(int(masks[0], 16) >> (number - 1) & 1)
    except (OSError, ValueError, IndexError):
        return False


def boot_id() -> str:
    """Changes with every boot of the host, so that a lease from before a reboot names nobody."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def describe(one: ProcStat) -> str:
    """For reports: `pid 4711 (python)`."""
    return f"pid {one.ref.pid} ({one.name})"


def reap_one() -> tuple[int, int] | None:
    """(pid, wait status) of one child that has ended, an adopted one too; None: none has."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None
