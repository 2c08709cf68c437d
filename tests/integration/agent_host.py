"""A host for the node agent's tests: a workdir on this machine, driven as a controller does it over SSH.

Real archive, real interpreter, real processes; only the SSH in between is left out.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmctl.controller.backends.archive import build
from llmctl.wire import codec
from llmctl.wire.layout import HostLayout, RunLayout
from llmctl.wire.records import (
    Event,
    FilesReply,
    FollowRequest,
    Frame,
    NodeStatus,
    StartReply,
    StartRequest,
    StatusReply,
    StopReport,
    StopRequest,
)
from llmctl.wire.specs import LaunchSpec, NodeSpec, Peer

HOST_PYTHON = os.environ.get("LLMCTL_TEST_HOST_PYTHON", sys.executable)
"""The interpreter of the hosts; another one runs the same suites against it."""

OLD_PYTHON = Path("~/.pyenv/versions/3.9.18/bin/python").expanduser()
"""Where developers keep the oldest supported interpreter; `python3.9` on PATH serves as well."""


def until(belief: Callable[[], Any], *, within: float = 30.0, what: str = "") -> Any:
    """Poll until `belief` is true; its value."""
    deadline = time.monotonic() + within
    while not (value := belief()):
        assert time.monotonic() < deadline, f"not within {within} s: {what or belief}"
        time.sleep(0.02)
    return value


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class AgentHost:
    """One workdir with the agent archive in place."""

    def __init__(self, workdir: Path, python: str = HOST_PYTHON) -> None:
        self.python = python
        self.layout = HostLayout(str(workdir.resolve()))
        archive = build()
        self.hash = archive.hash
        pyz = Path(self.layout.agent(archive.hash))
        pyz.parent.mkdir(parents=True)
        pyz.write_bytes(archive.data)
        self.pyz = str(pyz)
        self.specs: list[NodeSpec] = []

    # --- making runs ---

    def tree(self, files: dict[str, str]) -> str:
        """A pushed code tree with these files; returns its (made up) hash."""
        name = f"{len(list(Path(self.layout.workdir).glob('code/*'))):064x}"
        for path, text in files.items():
            file = Path(self.layout.tree(name)) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return name

    def spec(self, run_id: str, script: str | None = None, **changes: Any) -> NodeSpec:
        """A NodeSpec of one node whose ranks run `script`; `changes` go to it or to its launch."""
        keys = LaunchSpec.__dataclass_fields__
        launch: dict[str, Any] = {
            "launcher": "direct",
            "python": self.python,
            "command": ("train.py",),
            "nnodes": 1,
            "node_rank": 0,
            "nproc": 2,
            "first_rank": 0,
            "master_addr": "127.0.0.1",
            "master_port": free_port(),
        }
        launch |= {name: value for name, value in changes.items() if name in keys}
        launch.setdefault("world_size", launch["nproc"])
        own: dict[str, Any] = {"attempt": 1, "env": {}, "lease_s": 0.5, "grace_s": 5.0}
        own |= {name: value for name, value in changes.items() if name not in keys}
        if script is not None:
            own["tree"] = self.tree({"train.py": script})
        return NodeSpec(
            run_id=run_id,
            run_name=run_id.rpartition("-")[0],
            host="a",
            created_at=time.time(),
            workdir=self.layout.workdir,
            launch=LaunchSpec(**launch),
            peers=(Peer(host="a", addr="127.0.0.1", node_rank=0, nproc=launch["nproc"], first_rank=0),),
            agent=self.hash,
            **own,
        )

    # --- verbs ---

    def call(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """One command as it comes over SSH."""
        command = [self.python, self.pyz, *words]
        return subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)

    def ok(self, *words: str, stdin: str = "") -> bytes:
        done = self.call(*words, "--workdir", self.layout.workdir, stdin=stdin.encode())
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def fails(self, *words: str, stdin: str = "", code: int = 1) -> dict[str, Any]:
        """The JSON error of a verb that must fail."""
        done = self.call(*words, "--workdir", self.layout.workdir, stdin=stdin.encode())
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        error: dict[str, Any] = json.loads(done.stderr)
        assert b"Traceback" not in done.stderr
        return error

    def start(self, spec: NodeSpec, **secrets: str) -> StartReply:
        self.specs.append(spec)
        return codec.loads(StartReply, self.ok("start", stdin=start_text(spec, **secrets)))

    def status(self, run_id: str) -> NodeStatus:
        (node,) = codec.loads(StatusReply, self.ok("status", run_id)).nodes
        return node

    def statuses(self) -> tuple[NodeStatus, ...]:
        return codec.loads(StatusReply, self.ok("status")).nodes

    def stop(self, run_id: str, *, grace_s: float = 5.0, reason: str = "stop requested") -> StopReport:
        text = codec.dumps(StopRequest(grace_s=grace_s, reason=reason))
        return codec.loads(StopReport, self.ok("stop", run_id, stdin=text))

    def files(self, run_id: str) -> FilesReply:
        return codec.loads(FilesReply, self.ok("files", run_id))

    def follow(self, run_id: str, request: FollowRequest) -> list[Frame]:
        """All frames until the end."""
        return frames(self.ok("follow", run_id, stdin=codec.dumps(request)))

    # --- looking ---

    def run(self, run_id: str) -> RunLayout:
        return self.layout.run(run_id)

    def log(self, run_id: str, rank: int, attempt: int = 1) -> str:
        path = Path(self.run(run_id).attempt(attempt).rank_log(rank))
        return path.read_text(errors="replace") if path.exists() else ""

    def events(self, run_id: str) -> list[Event]:
        lines = Path(self.run(run_id).events).read_text().splitlines()
        return [codec.loads(Event, line) for line in lines]

    def ended(self, run_id: str, *, within: float = 60.0) -> NodeStatus:
        """Wait for the verdict."""
        exit_file = Path(self.run(run_id).attempt(self.attempt(run_id)).exit)
        until(exit_file.exists, within=within, what=f"{run_id} ends; {self.said(run_id)}")
        return self.status(run_id)

    def attempt(self, run_id: str) -> int:
        return max(spec.attempt for spec in self.specs if spec.run_id == run_id)

    def said(self, run_id: str) -> str:
        """Everything that a failing test needs to see."""
        root = Path(self.run(run_id).root)
        return "\n".join(f"{p}: {p.read_text(errors='replace')}" for p in root.glob("attempt-*/*.log"))

    def processes(self, run_id: str) -> set[int]:
        """Pids whose environment names this run here: the tests' own view, not the agent's."""
        mark = f"LLMCTL_RUN_DIR={self.run(run_id).root}".encode()
        return {int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if _has(path, mark)}

    def gone(self, run_id: str, *, within: float = 15.0) -> None:
        """Wait until no process of the run is left."""
        until(lambda: not self.processes(run_id), within=within, what=f"{self.processes(run_id)} end")

    def close(self) -> None:
        """End what a failed test may have left, by the pids that the agent itself recorded."""
        for run_id in {spec.run_id for spec in self.specs}:
            self.call("stop", run_id, "--workdir", self.layout.workdir, stdin=b'{"grace_s": 0}')
            for pid in self.processes(run_id):
                os.kill(pid, signal.SIGKILL)


def start_text(spec: NodeSpec, **secrets: str) -> str:
    return codec.dumps(StartRequest(spec=spec, secrets=secrets))


def frames(lines: bytes) -> list[Frame]:
    return [codec.loads(Frame, line) for line in lines.splitlines()]


def _has(path: Path, mark: bytes) -> bool:
    try:
        stat = (path.parent / "stat").read_text().rpartition(")")[2].split()
        return mark in path.read_bytes().split(b"\0") and stat[0] not in "ZX"
    except OSError:
        return False


def hosts(tmp_path: Path, python: str = HOST_PYTHON) -> Iterator[AgentHost]:
    """Body of the fixtures."""
    host = AgentHost(tmp_path / "host", python)
    yield host
    host.close()


def old_python() -> str:
    """The oldest supported interpreter, or skip."""
    import shutil

    for found in (str(OLD_PYTHON), shutil.which("python3.9")):
        if found and _starts(found):
            return found
    pytest.skip("no Python 3.9 on this machine")


def _starts(python: str) -> bool:
    """Whether it is one: a version manager's stub for a version that is not chosen only complains."""
    try:
        done = subprocess.run(
            [python, "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 9))"], check=False
        )
    except OSError:
        return False
    return done.returncode == 0
