"""Hosts that are back: after a reboot, after a cut line, after a stop that they did not hear."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration import scripts
from tests.integration.cluster import Cluster, until
from tests.lab.hosts import Lab

pytestmark = pytest.mark.hosts

LONG_S = 200.0
JOB: dict[str, Any] = {"train": {"launcher": "direct"}}


@pytest.fixture
def cluster(tmp_path: Path, lab: Lab) -> Cluster:
    return Cluster(folder=tmp_path / "c", lab=lab)


def told(cluster: Cluster, run: str) -> dict[str, Any]:
    """What the run's supervisor last said; empty before it did."""
    return dict(cluster.json("status", run, "--all")["run"]["supervision"] or {})


def running(cluster: Cluster, run: str, attempt: int) -> bool:
    """All nodes run this attempt, and its supervisor takes care of it."""
    view = cluster.json("status", run, "--all")["run"]
    said = view["supervision"] or {}
    states = [node["state"] for node in view["nodes"]]
    return bool(view["attempt"] == said.get("attempt") == attempt and states == ["running", "running"])


@contextmanager
def another_boot(lab: Lab, name: str) -> Iterator[str]:
    """The host's kernel has been started anew, as far as it says; hosts here share one."""
    boot = str(uuid.uuid4())
    lab.path(name, "/srv/boot").write_text(f"{boot}\n")
    target = "/proc/sys/kernel/random/boot_id"
    lab.on_host(name, ["mount", "--bind", "/srv/boot", target], check=True)
    try:
        yield boot
    finally:
        lab.on_host(name, ["umount", "-l", target], check=True)


def test_a_host_that_was_rebooted_takes_part_in_the_next_attempt(cluster: Cluster, lab: Lab) -> None:
    """Power cut of b, then another boot-id: what its old boot left is taken for dead, and the run goes on in
    one attempt on both."""
    cluster.write_script(scripts.SLEEPER, **JOB, restarts={"max": 3, "backoff_s": 0.2})
    run = cluster.start()
    until(lambda: running(cluster, run, 1), within=LONG_S, what="running")
    before = boot_of(cluster, run)
    lab.poweroff("node1")
    lab.start("node1")
    with another_boot(lab, "node1") as boot:
        until(lambda: running(cluster, run, 2), within=LONG_S, what="the next attempt")
        assert boot_of(cluster, run) == boot != before
        first, second = told(cluster, run)["attempts"]
        assert (first["state"], second["state"]) in (("failed", "running"), ("lost", "running"))
        assert not (cluster.run_dir("a", run) / "attempt-3").exists()
        cluster.run("stop", run, "--grace", "1")
    cluster.until_state(run, "cancelled")
    cluster.verdict(run)  # the lab may be gone soon, and its supervisor is to have heard of the stop
    assert not cluster.processes(run)


def boot_of(cluster: Cluster, run: str) -> str:
    """The boot that b's agent says it is of."""
    return str(json.loads((cluster.run_dir("b", run) / "lease.json").read_text())["boot_id"])


def test_events_and_logs_have_no_gap_after_a_cut_line(cluster: Cluster, lab: Lab) -> None:
    """Pulled while b is out of reach, and again when it is back: every byte of both hosts' events and logs is
    here once, and the events count without a gap."""
    cluster.write_script(scripts.SLEEPER, **JOB, restarts={"max": 3})
    run = cluster.start()
    until(lambda: running(cluster, run, 1), within=LONG_S, what="running")
    cluster.run("pull", run, "--dest", "home")
    lab.partition("node1", between="ctl")
    assert "b" in cluster.run("pull", run, "--dest", "home", expect=11).stderr
    lab.heal("node1")
    until(lambda: running(cluster, run, 1), within=LONG_S, what="in contact again")
    cluster.run("stop", run, "--grace", "1")
    cluster.run("pull", run, "--dest", "home")
    for name, rank in (("a", 0), ("b", 1)):
        for file in ("events.jsonl", f"attempt-1/rank-{rank}.log"):
            here = (cluster.folder / "home" / name / file).read_bytes()
            assert here == (cluster.run_dir(name, run) / file).read_bytes(), f"{name}: {file}"
        events = (cluster.folder / "home" / name / "events.jsonl").read_text().splitlines()
        numbers = [json.loads(line)["seq"] for line in events]
        assert numbers == list(range(1, len(numbers) + 1))
    assert not cluster.processes(run)


def test_a_stop_that_a_host_does_not_hear_ends_its_ranks_with_its_lease(cluster: Cluster, lab: Lab) -> None:
    """b is cut off while the run is stopped: exit 11; its own agent ends its ranks when the lease is over,
    still cut off; back again, it starts nothing, and the run is cancelled."""
    restarts = {"max": 3, "backoff_s": 0.2, "min_nodes": 1, "lease_s": 15}
    cluster.write_script(scripts.SLEEPER, **JOB, restarts=restarts)
    run = cluster.start()
    until(lambda: running(cluster, run, 1), within=LONG_S, what="running")
    lab.partition("node1")
    assert "b has not heard of the stop" in cluster.run("stop", run, "--grace", "1", expect=11).stderr
    until(lambda: not cluster.processes(run), within=LONG_S, what="b has ended its ranks by itself")
    verdict = cluster.run_dir("b", run) / "attempt-1/exit.json"
    until(verdict.exists, what="the agent's verdict, after the last of them")
    ended = json.loads(verdict.read_text())
    assert ended["reason"] == "fenced: no word of the supervisor for 15 s"
    lab.heal("node1")
    cluster.until_state(run, "cancelled", within=LONG_S)
    assert not (cluster.run_dir("a", run) / "attempt-2").exists()
    assert not cluster.processes(run)
