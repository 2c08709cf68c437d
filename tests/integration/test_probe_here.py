"""The probe's script on this machine: one command, any POSIX shell, and whatever is missing is a fact."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmctl.controller.config.types import Host
from llmctl.controller.probe import script
from llmctl.controller.probe.facts import HostFacts
from llmctl.controller.probe.parsers import parse
from llmctl.controller.probe.probe import look, probe
from llmctl.controller.transport.local import LocalTransport


class Counting(LocalTransport):
    """The real transport, counting what is asked of it."""

    def __init__(self) -> None:
        super().__init__("a")
        self.asked = 0

    def open(self, argv: Sequence[str], *, stage: str, deadline_s: float = 15.0) -> Any:
        self.asked += 1
        return super().open(argv, stage=stage, deadline_s=deadline_s)


def here(workdir: Path, python: str = sys.executable) -> Host:
    return Host(name="a", addr="local", workdir=str(workdir), python=python)


def by(shell: str, workdir: Path, **env: str) -> HostFacts:
    argv = script.argv(workdir=str(workdir), python=sys.executable, full=True)
    done = subprocess.run(
        [shell, *argv[1:]], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
    assert done.stderr == "", "a probe has nothing to say beside its sections"
    return parse("a", "\n" + done.stdout)


@pytest.mark.parametrize("full", [False, True])
def test_every_fact_comes_in_one_round_trip(tmp_path: Path, full: bool) -> None:
    """However much is asked, a host is asked once; its clock is ours, as it is this machine."""
    transport = Counting()
    before = time.time()
    facts = probe(transport, here(tmp_path), full=full)
    assert transport.asked == 1
    assert facts.python is not None
    assert facts.more.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert before - 1 <= facts.clock <= time.time() + 1
    skew = facts.more.skew
    assert skew is not None
    assert abs(skew.ahead) <= skew.error + 0.01
    assert facts.more.cpu.logical == len(os.sched_getaffinity(0)) or facts.more.cpu.logical == os.cpu_count()


def test_a_look_makes_nothing(tmp_path: Path) -> None:
    """Trusting a host asks which machine it is, and leaves no folder there."""
    workdir = tmp_path / "none"
    machine = look(LocalTransport("a"), here(workdir))
    assert machine.boot_id
    assert not workdir.exists()


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_any_posix_shell_reads_the_same(shell: str, tmp_path: Path) -> None:
    """`sh` is dash on Debian and bash elsewhere: facts that don't change by themselves are equal."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    found, usual = by(shell, tmp_path), by("sh", tmp_path)
    for fact in ("hostname", "machine_id", "cpu", "limits", "cgroup", "interfaces", "pythons", "cuda"):
        assert getattr(found.more, fact) == getattr(usual.more, fact), fact
    assert found.python is not None
    assert found.python.packages == (usual.python.packages if usual.python else ())


def test_a_host_without_python_still_tells_everything_else(tmp_path: Path) -> None:
    """Bare machines are what the check is for."""
    facts = probe(LocalTransport("a"), here(tmp_path, "/opt/none/python"), full=True)
    assert facts.python is None
    assert "/opt/none/python" in str(facts.python_error)
    assert facts.more.disk(str(tmp_path)) is not None


@pytest.mark.parametrize(
    ("tool", "body"),
    [
        ("ip", "echo not json"),
        ("df", "echo df: stale file handle >&2; exit 1"),
        ("getent", "exit 2"),
        ("stat", "exit 1"),
        ("nvidia-smi", "echo 'Failed to initialize NVML'; exit 9"),
        ("rocm-smi", "echo Traceback; exit 1"),
        ("date", "echo 'date: bad'; exit 1"),
        ("date", "exit 1"),
        ("uname", "echo Linux 6.1 x86_64"),
    ],
)
def test_a_tool_that_fails_costs_its_own_facts_only(tool: str, body: str, tmp_path: Path) -> None:
    """Whatever one tool does, the probe runs to its end and the rest is known."""
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / tool).write_text(f"#!/bin/sh\n{body}\n")
    (broken / tool).chmod(0o755)
    argv = script.argv(workdir=str(tmp_path / "w"), python=sys.executable, full=True)
    path = f"{broken}:{os.environ['PATH']}"
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    facts = parse("a", "\n" + done.stdout)
    assert facts.python is not None
    assert facts.more.machine_id
    assert facts.cores > 0
