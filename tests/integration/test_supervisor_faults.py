"""What a run must bear: its supervisor's death at any step, clocks that jump, a full disk."""

from __future__ import annotations

import ctypes
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import Cluster, until
from tests.integration.test_attempts_local import supervisor_pid
from tests.lab.odd_python import OddPython, odd_python

LEASE_S = 15.0
MOVED_S = 3600
LONG_S = 200.0
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own, of 80 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=80m") != 0:
        pytest.skip(f"mount: {os.strerror(ctypes.get_errno())}")
    try:
        yield folder
    finally:
        libc.umount2(str(folder).encode(), 2)


def test_jumping_clocks_and_a_full_disk_end_nothing(tmp_path: Path, small_disk: Path) -> None:
    """b's clock jumps an hour ahead, the supervisor's an hour back, b's disk is full, all for longer than a
    lease: it is renewed and nobody takes the supervisor for dead. Then the disk is free again, the clocks
    stay two hours apart, and a rank's death is followed by one attempt."""
    cluster = Cluster(folder=tmp_path / "c")
    ours, b = odd_python(tmp_path / "ours", clock=True), odd_python(tmp_path / "b", clock=True)
    cluster.write_hosts(b={"python": str(b.path), "workdir": str(small_disk / "host-b")})
    restarts = {"max": 2, "backoff_s": 0.2, "min_nodes": 1, "lease_s": LEASE_S}
    cluster.write_script(QUIET, **JOB, restarts=restarts)
    run = cluster.run("train", "-d", env={"LD_PRELOAD": str(ours.preload)}).stdout.strip()
    word = small_disk / "host-b/runs" / run / "supervisor.json"
    first = until(lambda: told(word).get("valid_until"), what="a lease")
    b.jump(MOVED_S)
    ours.jump(-MOVED_S)
    fill(small_disk / "filler")
    until(lambda: (told(word).get("valid_until") or 0) > first + LEASE_S + 10, what="renewed leases")
    assert abs(told(word)["heard_at"] - word.stat().st_mtime - MOVED_S) < MOVED_S / 2, "the clock did jump"
    assert alive(cluster, run) == [(1, 0), (1, 1)]
    assert "has a supervisor" in cluster.run("resume", run, expect=2).stderr
    (small_disk / "filler").unlink()
    kill_rank(cluster, run, 1)
    until(lambda: alive(cluster, run) == [(2, 0), (2, 1)], within=LONG_S, what="the second attempt")
    until(lambda: len(attempts(cluster, run)) == 2, what="it is told")
    assert attempts(cluster, run)[0]["reason"] == "rank 1: SIGKILL on b"
    cluster.run("stop", run, "--grace", "1")
    cluster.until_state(run, "cancelled")
    assert not cluster.processes(run)


def test_a_host_that_cannot_start_the_next_attempt_is_left_out(tmp_path: Path, small_disk: Path) -> None:
    """b's disk is full by the time a rank dies: the run goes on with `a`, and says why b is not there."""
    cluster = Cluster(folder=tmp_path / "c")
    cluster.write_hosts(b={"workdir": str(small_disk / "host-b")})
    restarts = {"max": 2, "backoff_s": 0.2, "min_nodes": 1, "lease_s": LEASE_S}
    cluster.write_script(QUIET, **JOB, restarts=restarts)
    run = cluster.start()
    cluster.until_state(run, "running")
    fill(small_disk / "filler")
    kill_rank(cluster, run, 0)
    until(lambda: alive(cluster, run) == [(3, 0)], within=LONG_S, what="an attempt without b")
    until(lambda: len(attempts(cluster, run)) == 3, what="it is told")
    _, refused, last = attempts(cluster, run)
    assert (refused["state"], last["hosts"]) == ("failed", ["a"])
    assert refused["reason"].startswith("b: ")
    assert last["note"] == refused["reason"]
    (small_disk / "filler").unlink()
    cluster.run("stop", run, "--grace", "1")
    assert cluster.verdict(run)["verdict"] == "cancelled"
    assert not cluster.processes(run)


def told(path: Path) -> dict[str, Any]:
    """supervisor.json; on a full disk it is written over in place, and may be met half-written."""
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def fill(path: Path) -> None:
    """To the last block."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while file.write(b"x" * size) == size:
                    continue
            except OSError:
                continue


def while_it_watches(_cluster: Cluster, _run: str, _b: OddPython) -> None:
    """Nothing has happened yet."""


def while_it_ends_an_attempt(cluster: Cluster, run: str, b: OddPython) -> None:
    """Rank 0 has died on a; its order to end the ranks on b is under way."""
    b.hold("stop")
    kill_rank(cluster, run, 0)
    until(lambda: b.holds("stop"), what="the order to end")


def while_it_forms_an_attempt(cluster: Cluster, run: str, b: OddPython) -> None:
    """The second attempt's agent runs on a, its order to start on b is under way."""
    b.hold("start")
    kill_rank(cluster, run, 0)
    until(lambda: b.holds("start"), what="the order to start")
    until(lambda: (2, 0) in alive(cluster, run), what="the half of it on a")


@pytest.mark.parametrize(
    "step", [while_it_watches, while_it_ends_an_attempt, while_it_forms_an_attempt], ids=lambda s: s.__name__
)
def test_a_supervisor_that_is_killed_at_any_step_loses_no_run_and_starts_none_twice(
    step: Callable[[Cluster, str, OddPython], None], tmp_path: Path
) -> None:
    """kill -9 at this step, then `resume`: the run goes on in one attempt, and the dead supervisor's last
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
    running = until(lambda: one_attempt(cluster, run), within=LONG_S, what="one attempt on both hosts")
    for verb in ("stop", "start"):
        if b.holds(verb):
            b.let_go(verb)
            until(lambda verb=verb: b.is_through(verb), what="the late order")
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
