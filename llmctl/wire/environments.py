"""Environments on a host: what is asked for, what stands there, and what a host says about building one.

An environment is named by a hash over everything that decides what it will be, so two hosts with one hash
have the same packages, and a second build of the same is none at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

READY = "ready.json"
"""Written last: a folder without it is no environment."""


@dataclass(frozen=True)
class Package:
    """One locked distribution. `sha256`: files that may be it; `file`, `size`: the one that is known."""

    name: str
    version: str
    sha256: tuple[str, ...]
    file: str = ""
    size: int = 0


@dataclass(frozen=True)
class Blob:
    """One file that travels by its content."""

    sha256: str
    size: int
    name: str


@dataclass(frozen=True)
class EnvRequest:
    """stdin of `environment`.

    Attributes:
        request: name of what the job asks for (`request_key`), by which `train` finds the environment.
        hash: of the environment (`env_hash`). build: torch's, such as `cpu` or `cu128`; empty: no torch.
        pip: the wheel that installs; its own host needs no pip.
        offline: install from wheels that were sent here, ask no index.
        indexes: further package indexes, for a host that asks them itself.
        verify: modules that must be importable before the environment counts.
    """

    request: str
    hash: str
    packages: tuple[Package, ...]
    pip: Blob
    build: str = ""
    offline: bool = False
    indexes: tuple[str, ...] = ()
    verify: tuple[str, ...] = ()
    deadline_s: float = 3600.0


@dataclass(frozen=True)
class EnvReply:
    """stdout of `environment`: it stands now. `built` is False where it stood before."""

    hash: str
    python: str
    built: bool
    bytes: int
    seconds: float


@dataclass(frozen=True)
class EnvReady:
    """`ready.json`: what the environment beside it is. `python` is its interpreter, `base` the one it is made
    of, `version` theirs."""

    hash: str
    request: str
    python: str
    base: str
    version: str
    build: str
    packages: tuple[str, ...]
    created: float
    bytes: int = 0


@dataclass(frozen=True)
class HaveRequest:
    """stdin of `wheels`: which of these are not there whole?"""

    blobs: tuple[Blob, ...]


@dataclass(frozen=True)
class HaveReply:
    """stdout of `wheels`: hashes of what is missing, and the bytes free for it."""

    missing: tuple[str, ...]
    free: int


@dataclass(frozen=True)
class RelayHello:
    """First line of `relay`'s stdout: the TCP port on which it will hand the files on."""

    port: int


@dataclass(frozen=True)
class RelayRequest:
    """First line of `relay`'s stdin: files to have, where from, and for how many to hand them on.

    Attributes:
        token: one-time; a peer shows it before it gets a byte.
        folder: where the files go, each in a folder of its hash: `~/` is the host's.
        sources: addresses of the parent, in order of trial; empty: what is wanted follows on stdin.
        port: the parent's.
        children: hosts that will come for the files; it ends when it has served as many, or stdin ends.
        places: where in `folder` each goes instead, by hash; then the last file is their manifest.
    """

    token: str
    blobs: tuple[Blob, ...]
    folder: str
    sources: tuple[str, ...] = ()
    port: int = 0
    children: int = 0
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class RelayWanted:
    """Second line of its stdout: hashes of what is missing there, in the order in which it is to come."""

    missing: tuple[str, ...]
    free: int


@dataclass(frozen=True)
class RelayFetch:
    """What a child says to its parent, on one line; the files follow, one after the other."""

    token: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class RelayReply:
    """Third line of its stdout: everything is there, so many bytes came, from that address. It goes on to
    hand them on until every child has them or stdin ends."""

    bytes: int
    source: str = ""


def request_key(requirements: Sequence[str], *, kind: str, python: Optional[str]) -> str:
    """A name for what a job asks for, known without any host: 64 hex digits."""
    return _digest({"requirements": sorted(requirements), "kind": kind, "python": python or ""})


def env_hash(
    packages: Sequence[Package], *, python: str, platform: str, build: str, verify: Sequence[str]
) -> str:
    """The environment's name: 64 hex digits.

    Args:
        python: its minor version, such as `3.12`. Patch releases share packages, and hosts are seldom
            patched at once.
        platform: `x86_64-glibc` and the like.
    """
    locked = sorted([one.name, one.version, sorted(one.sha256)] for one in packages)
    return _digest(
        {"packages": locked, "python": python, "platform": platform, "build": build, "verify": list(verify)}
    )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
