"""What processes may leave behind or still hold: listening TCP ports and GPU memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping

_LISTEN = "0A"
_SOCKET = "socket:["
_GPU_QUERY = ("--query-compute-apps=pid", "--format=csv,noheader")
_GPU_DEADLINE_S = 20.0


def listening(pids: Iterable[int]) -> dict[str, int]:
    """Socket inode -> TCP port, of the ports on which these processes listen."""
    ports = _listening_sockets()
    held: set[str] = set()
    for pid in pids:
        held |= _sockets_of(pid)
    return {inode: port for inode, port in ports.items() if inode in held}


def still_listening(before: Mapping[str, int]) -> tuple[str, ...]:
    """Those of `before` that are open now: somebody inherited the socket."""
    now = _listening_sockets()
    return tuple(f"tcp port {port}" for inode, port in sorted(before.items()) if inode in now)


def parse_listening(table: str) -> dict[str, int]:
    """/proc/net/tcp or tcp6 as socket inode -> port, listening ones only."""
    found = {}
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN:
            found[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    return found


def on_gpu(pids: Iterable[int]) -> tuple[str, ...]:
    """Those of `pids` that still hold memory of an NVIDIA GPU; none where there is no nvidia-smi."""
    wanted = set(pids)
    if not wanted or shutil.which("nvidia-smi") is None:
        return ()
    return tuple(f"gpu memory of pid {pid}" for pid in sorted(wanted & _gpu_pids()))


def _gpu_pids() -> set[int]:
    import subprocess

    command = ("nvidia-smi", *_GPU_QUERY)
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GPU_DEADLINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return {int(word) for word in done.stdout.split() if word.isdigit()}


def _listening_sockets() -> dict[str, int]:
    found: dict[str, int] = {}
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/self/net/{name}", encoding="ascii") as file:
                found.update(parse_listening(file.read()))
        except OSError:
            continue
    return found


def _sockets_of(pid: int) -> set[str]:
    folder = f"/proc/{pid}/fd"
    try:
        links = [os.readlink(os.path.join(folder, name)) for name in os.listdir(folder)]
    except OSError:
        return set()
    return {link[len(_SOCKET) : -1] for link in links if link.startswith(_SOCKET)}
