"""What holds a host is seen, a second run is refused, waits or shares, and orphans are ended on request."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import scripts
from tests.integration.cluster import Cluster, until

DIRECT = {"train": {"launcher": "direct"}}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two local hosts; what a failed test leaves is ended."""
    made = Cluster(folder=tmp_path / "c")
    yield made
    for row in made.json("status", "--all")["runs"]:
        made.run("stop", row["run_id"], "--grace", "0", expect=None)


def test_a_second_run_is_refused_waits_or_shares(cluster: Cluster) -> None:
    """Refused with the first one's name and no trace; --share starts beside it; --wait takes its turn."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    first = cluster.start()
    cluster.until_state(first, "running")
    told = cluster.run("train", "-d", expect=10).stderr
    assert f"{first} runs here" in told
    assert "--share" in told
    assert [row["run_id"] for row in cluster.json("status", "--all")["runs"]] == [first]
    beside = cluster.start("--share")
    held = cluster.json("ps")["hosts"]
    assert {name: sorted(one["run_id"] for one in host["runs"]) for name, host in held.items()} == {
        "a": sorted([first, beside]),
        "b": sorted([first, beside]),
    }
    assert all(one["orphans"] == [] for host in held.values() for one in host["runs"])
    cluster.run("stop", beside, "--grace", "1")
    waiting = cluster.popen("train", "-d", "--wait")
    try:
        assert waiting.stderr is not None
        until(lambda: "waiting: " in waiting.stderr.readline(), what="it says what it waits for")
        cluster.run("stop", first, "--grace", "1")
        out, err = waiting.communicate(timeout=120)
    finally:
        waiting.kill()
    assert waiting.returncode == 0, err
    third = out.strip()
    cluster.until_state(third, "running")
    cluster.run("resume", "-d", first)
    until(lambda: "waiting for a, b" in _supervisor(cluster, first), what="it waits, too")
    assert not cluster.processes(first)
    cluster.run("stop", third, "--grace", "1")
    until(lambda: cluster.processes(first), within=120, what="its turn has come")
    cluster.run("stop", first, "--grace", "1")
    assert "free" in cluster.run("ps").stdout


def test_two_runs_at_once_never_both_get_the_hosts(cluster: Cluster) -> None:
    """Of two that start at the same moment at most one wins; the other is told, and leaves nothing."""
    cluster.write_script(scripts.SLEEPER, **DIRECT)
    cluster.write_hosts()
    pair = [cluster.popen("train", "-d") for _ in range(2)]
    told = [one.communicate(timeout=120) for one in pair]
    started = [out.strip() for (out, _), one in zip(told, pair, strict=True) if one.returncode == 0]
    assert len(started) <= 1, told
    assert sorted(one.returncode for one in pair)[-1] == 10, told
    held = cluster.json("ps")["hosts"]
    assert {one["run_id"] for host in held.values() for one in host["runs"]} == set(started)
    for run in started:
        cluster.run("stop", run, "--grace", "1")


def test_orphans_are_named_and_ended(cluster: Cluster) -> None:
    """A rank's helper that outlived agent and guard, and the run's directory, is found by its environment."""
    cluster.write_script(
        "import subprocess, time\nsubprocess.Popen(['setsid', 'sleep', '300'])\ntime.sleep(300)\n", **DIRECT
    )
    run = cluster.start()
    cluster.until_state(run, "running")
    until(lambda: _sleeps(cluster, run) == 2, what="both helpers run")
    for name in "ab":
        agent = cluster.agent_pid(name, run)
        guard = int(Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(guard, signal.SIGKILL)
        os.kill(agent, signal.SIGKILL)
    until(lambda: len(cluster.processes(run)) == 2, what="only the helpers are left")
    shown = cluster.run("ps", expect=100).stdout
    assert shown.count("orphans: pid") == 2
    reaped = cluster.json("ps", "--reap")["hosts"]
    assert [one["reaped"] for host in reaped.values() for one in host["runs"]] == [1, 1]
    assert not cluster.processes(run)
    assert cluster.json("ps")["hosts"]["a"]["runs"] == []


def _supervisor(cluster: Cluster, run: str) -> str:
    """What the run's supervisor last told its hosts."""
    told = cluster.json("status", run, "--all")["run"]["supervision"]
    return str(told["detail"]) if told else ""


def _sleeps(cluster: Cluster, run: str) -> int:
    return sum(_name(pid) == "sleep" for pid in cluster.processes(run))


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
