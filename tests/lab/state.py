"""What a test changes on the shared hosts: for a while, and how to tell that it was put back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.hosts import Lab

_KEPT = (
    "/etc/hosts",
    "/etc/machine-id",
    "/root/.ssh/authorized_keys",
    "/home/trainer/.ssh/authorized_keys",
)


def traits(lab: Lab) -> dict[str, dict[str, object]]:
    """What tests could leave changed on running hosts: names, keys, programs, addresses and mounts."""
    return {name: _traits(lab, name) for name in lab.names}


def _traits(lab: Lab, name: str) -> dict[str, object]:
    process = Path("/proc", str(lab.pid(name)))
    addresses = re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", (process / "net/fib_trie").read_text())
    return {
        **{path: lab.path(name, path).read_text() for path in _KEPT},
        "programs": sorted(file.name for file in lab.path(name, "/usr/local/bin").iterdir()),
        "addresses": sorted(set(addresses)),
        "mounts": sorted(line.split()[4] for line in (process / "mountinfo").read_text().splitlines()),
    }


@contextmanager
def mounted(lab: Lab, name: str, target: str, *options: str) -> Iterator[None]:
    """A mount on a host for a while; its folder is made."""
    lab.on_host(name, ["mkdir", "-p", target], check=True)
    lab.on_host(name, ["mount", *options, target], check=True)
    try:
        yield
    finally:
        lab.on_host(name, ["umount", "-l", target], check=True)


@contextmanager
def rewritten(lab: Lab, name: str, path: str, text: str) -> Iterator[None]:
    """A file of a host with another content for a while."""
    file = lab.path(name, path)
    before = file.read_text()
    file.write_text(text)
    try:
        yield
    finally:
        file.write_text(before)
