"""The few kernel calls that the lab needs and Python 3.11 has no function for. Standard library only."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """New namespaces for this process (NEWPID: for its children)."""
    if _LIBC.unshare(flags):
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")


def enter_net(path: str) -> None:
    """Move the calling thread into the network namespace at `path` (/proc/PID/ns/net)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _LIBC.setns(fd, NEWNET):
            raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)


@contextmanager
def inside_net(path: str) -> Iterator[None]:
    """The calling thread, and threads that it starts meanwhile, open sockets in that namespace."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter_net(path)
        try:
            yield
        finally:
            enter_net(f"/proc/self/fd/{before}")
    finally:
        os.close(before)


def open_tap(name: str) -> int:
    """A TAP device of that name in the present network namespace; frames are read and written whole."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0002 | 0x1000))  # TAP | NO_PI
    return fd


def start_time(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat: with the pid it names one process; None when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


class Cgroup:
    """One host's control group: memory and CPU limits, and the freezer. Cgroup v1 or v2."""

    def __init__(self, name: str) -> None:
        root = Path("/sys/fs/cgroup")
        self._v2 = (root / "cgroup.controllers").exists()
        self._dirs = [root / name] if self._v2 else [root / c / name for c in ("memory", "cpu", "freezer")]

    def add(self, pid: int, *, mem_mib: int | None, cpus: float | None) -> None:
        """Put a process (and all that it will start) into the group."""
        for folder in self._dirs:
            folder.mkdir(exist_ok=True)
        if mem_mib:
            self._write("memory.max" if self._v2 else "memory.limit_in_bytes", str(mem_mib << 20))
        if cpus:
            quota = str(int(cpus * 100_000))
            self._write("cpu.max" if self._v2 else "cpu.cfs_quota_us", quota)
        for folder in self._dirs:
            (folder / "cgroup.procs").write_text(str(pid))

    def freeze(self, frozen: bool) -> None:
        """Stop or continue every process of the group without their knowing."""
        if self._v2:
            self._write("cgroup.freeze", str(int(frozen)))
        else:
            self._write("freezer.state", "FROZEN" if frozen else "THAWED")

    def remove(self) -> None:
        """Forget the group; it must be empty."""
        for folder in self._dirs:
            if folder.exists():
                folder.rmdir()

    def _write(self, name: str, value: str) -> None:
        for folder in self._dirs:
            if (folder / name).exists():
                (folder / name).write_text(value)
