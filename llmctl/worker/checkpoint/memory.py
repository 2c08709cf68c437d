"""How much host memory may still be taken: what the machine has free, less where a cgroup ends sooner."""

from __future__ import annotations

from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def free_host_memory(proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int:
    """Bytes that could be allocated now without swapping or an OOM kill, by the kernel's own estimate."""
    lines = (proc / "meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) << 10
    return min([available, *_cgroup_rooms(proc, cgroups)])


def _cgroup_rooms(proc: Path, cgroups: Path) -> list[int]:
    """What is left below the limit of this process's cgroup (v2) and of each one around it."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None:
        return []
    rooms = []
    folder = cgroups / path.lstrip("/")
    while folder != cgroups.parent:
        rooms += _room(folder)
        folder = folder.parent
    return rooms


def _room(folder: Path) -> list[int]:
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return []
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # the root has no limit, and a container may not see its own
        return []
    # Cached files count as used, but give way.
    return [max(0, int(limit) - used + int(stat.get("inactive_file", 0)))]
