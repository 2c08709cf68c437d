"""What the transport contract suites share: an open transport of each kind, on an empty home."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmctl.controller.config.types import Host
from llmctl.controller.transport.base import Transport
from llmctl.controller.transport.pool import Connections
from tests.lab.hosts import Lab

KINDS = ["local", pytest.param("ssh", marks=pytest.mark.hosts)]


@dataclass(frozen=True, kw_only=True)
class Far:
    """A transport, and the host's file system seen without it.

    Attributes:
        path: a path on the host -> the same file for the test.
        scratch: an empty folder on the host.
    """

    transport: Transport
    path: Callable[[str], Path]
    scratch: str


def open_far(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Connections, Far]:
    """A connection of that kind, and a look at its host."""
    if kind == "local":
        home = tmp_path / "home"
        home.mkdir()
        request.getfixturevalue("monkeypatch").setenv("HOME", str(home))
        connections = Connections([Host(name="far", addr="local")])
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        return connections, Far(transport=connections.get("far"), path=Path, scratch=str(scratch))
    lab: Lab = request.getfixturevalue("in_lab")
    connections = Connections([Host(name="far", addr="node0")])
    transport = connections.get("far")
    scratch = transport.run(["mktemp", "-d"], deadline_s=20, stage="test").stdout.decode().strip()
    return connections, Far(transport=transport, path=lambda path: lab.path("node0", path), scratch=scratch)
