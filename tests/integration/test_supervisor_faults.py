"""What a run must bear: its supervisor's death while it watches, or while it ends an attempt."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import Cluster, until
from tests.integration.test_attempts_local import supervisor_pid
from tests.lab.odd_python import OddPython, odd_python

QUIET = "import time\ntime.sleep(600)\n"
"""Needs no disk: it does not even print."""

JOB: dict[str, Any] = {"train": {"launcher": "direct"}}


def attempts(cluster: Cluster, run: str) -> list[dict[str, Any]]:
    view = cluster.json("status", run, "--all")["run"]
    return list((view["supervision"] or {}).get("attempts", []))


def alive(cluster: Cluster, run: str) -> list[tuple[int, int]]:
    """(attempt, rank) of each rank that runs now, shims left out."""
    found = []
    for pid in cluster.processes(run):
        entries, words = _of(pid)
        if words[1:2] == [b"-u"] and words[-1].endswith(b"train.py") and b"rank" not in words:
            found.append((int(entries[b"LLMCTL_ATTEMPT"]), int(entries[b"RANK"])))
    return sorted(found)


def kill_rank(cluster: Cluster, run: str, rank: int) -> None:
    for pid in cluster.processes(run):
        entries, words = _of(pid)
        if entries.get(b"RANK") == str(rank).encode() and words[1:2] == [b"-u"]:
            os.kill(pid, signal.SIGKILL)
            return
    raise AssertionError(f"no rank {rank}")


def _of(pid: int) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Environment and command line; empty where it has just ended."""
    folder = Path("/proc", str(pid))
    try:
        entries = dict(e.split(b"=", 1) for e in (folder / "environ").read_bytes().split(b"\0") if b"=" in e)
        return entries, (folder / "cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return {}, []


def while_it_watches(_cluster: Cluster, _run: str, _b: OddPython) -> None:
    """Nothing has happened yet."""


def while_it_ends_an_attempt(cluster: Cluster, run: str, b: OddPython) -> None:
    """Rank 0 has died on a; its order to end the ranks on b is under way."""
    b.hold("stop")
    kill_rank(cluster, run, 0)
    until(lambda: b.holds("stop"), what="the order to end")


@pytest.mark.parametrize("step", [while_it_watches, while_it_ends_an_attempt], ids=lambda s: s.__name__)
def test_a_supervisor_that_is_killed_at_some_step_loses_no_run(
    step: Callable[[Cluster, str, OddPython], None], tmp_path: Path
) -> None:
    """kill -9 at that step, then `resume`: the run goes on in one attempt, and the dead supervisor's last
    order, which comes after all, changes nothing."""
    cluster = Cluster(folder=tmp_path / "c")
    b = odd_python(tmp_path / "b")
    cluster.write_hosts(b={"python": str(b.path)})
    cluster.write_script(QUIET, **JOB, restarts={"max": 9, "backoff_s": 0.2})
    run = cluster.start()
    until(lambda: attempts(cluster, run) and alive(cluster, run) == [(1, 0), (1, 1)], what="running")
    step(cluster, run, b)
    os.kill(supervisor_pid(run), signal.SIGKILL)
    cluster.run("resume", "-d", "--take-over", run)
    if step is while_it_watches:
        until(lambda: cluster.json("status", run, "--all")["run"]["supervision"]["epoch"] == 2)
        kill_rank(cluster, run, 0)
    running = until(lambda: one_attempt(cluster, run), what="one attempt on both hosts")
    if b.holds("stop"):
        b.let_go("stop")
        until(lambda: b.is_through("stop"), what="the late order")
    until(lambda: attempts(cluster, run)[-1]["attempt"] == running, what="it is told")
    assert alive(cluster, run) == [(running, 0), (running, 1)]
    numbers = [one["attempt"] for one in attempts(cluster, run)]
    assert numbers == sorted(set(numbers)), "an attempt was started twice"
    cluster.run("stop", run, "--grace", "1")
    cluster.until_state(run, "cancelled")
    assert not cluster.processes(run)


def one_attempt(cluster: Cluster, run: str) -> int:
    """The number of the later attempt whose ranks, and no others, run; else 0."""
    found = alive(cluster, run)
    number = found[-1][0] if found else 0
    return number if number > 1 and found == [(number, 0), (number, 1)] else 0
