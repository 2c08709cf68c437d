"""A control group of the run's own, where the host lets us make one: finds what left every other trace.

Best effort, version 2 or 1: no group only means one way less to find the run's processes.
"""

from __future__ import annotations

import os

_V1_HIERARCHIES = ("name=systemd", "pids", "freezer")


def create(name: str) -> str | None:
    """A new group below our own; its folder, or None where that is not allowed."""
    for folder in _own_folders():
        path = os.path.join(folder, name)
        try:
            os.mkdir(path)
        except FileExistsError:
            pass
        except OSError:
            continue
        if os.access(os.path.join(path, "cgroup.procs"), os.W_OK):
            return path
        remove(path)
    return None


def join(path: str) -> None:
    """Put the calling process, and all that it starts, into the group."""
    try:
        fd = os.open(os.path.join(path, "cgroup.procs"), os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(fd, b"0")
    except OSError:
        return
    finally:
        os.close(fd)


def pids(path: str | None) -> set[int]:
    """Who is in the group now."""
    if path is None:
        return set()
    try:
        with open(os.path.join(path, "cgroup.procs"), encoding="ascii") as file:
            return {int(line) for line in file}
    except (OSError, ValueError):
        return set()


def remove(path: str | None) -> None:
    """Remove the empty group; one that is not empty stays."""
    if path is None:
        return
    try:
        os.rmdir(path)
    except OSError:
        return


def _own_folders() -> list[str]:
    """Folders of the groups that we are in, version 2 first."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
        with open("/proc/self/mounts", encoding="utf-8") as file:
            mounts = [line.split() for line in file]
    except OSError:
        return []
    found = []
    for wanted in ("", *_V1_HIERARCHIES):
        for _, controllers, path in groups:
            if controllers == wanted or (wanted and wanted in controllers.split(",")):
                found += [mount + path.rstrip("/") for mount in _mounts_of(wanted, mounts)]
    return found


def _mounts_of(controller: str, mounts: list[list[str]]) -> list[str]:
    if not controller:
        return [fields[1] for fields in mounts if fields[2] == "cgroup2"]
    return [fields[1] for fields in mounts if fields[2] == "cgroup" and controller in fields[3].split(",")]
