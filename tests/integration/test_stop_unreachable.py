"""A stop while a host can't be reached: said, kept, and delivered at the next contact."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import scripts
from tests.integration.cluster import Cluster, until
from tests.lab.hosts import Lab

pytestmark = pytest.mark.hosts


def test_a_stop_reaches_the_host_that_was_away(tmp_path: Path, lab: Lab) -> None:
    """Exit 11 with the host's name; it goes on meanwhile, and `status` ends it as soon as it answers."""
    cluster = Cluster(folder=tmp_path / "c", lab=lab)
    cluster.write_script(scripts.SLEEPER, train={"launcher": "direct"})
    run = cluster.start()
    cluster.until_state(run, "running")
    lab.partition("node1", between="ctl")
    told = cluster.run("stop", run, "--grace", "1", expect=11).stderr
    assert "b has not heard of the stop" in told
    assert cluster.processes(run), "b was out of reach and goes on"
    lab.heal("node1")
    said = until(lambda: _told(cluster, run), within=120, what="the stop is delivered")
    assert "no process, port or GPU memory left" in said
    assert not cluster.processes(run)
    assert cluster.state(run) == "cancelled"
    assert "had not heard" not in cluster.run("status", run).stderr


def _told(cluster: Cluster, run: str) -> str:
    said = cluster.run("status", run).stderr
    return said if f"{run}: the stop that b had not heard of" in said else ""


def test_a_stop_that_no_host_heard_is_handed_on_by_the_supervisor(tmp_path: Path, lab: Lab) -> None:
    """It ends the run as soon as hosts answer, without any command; a `resume` is not stopped by it later."""
    cluster = Cluster(folder=tmp_path / "c", lab=lab)
    cluster.write_script(scripts.SLEEPER, train={"launcher": "direct"}, restarts={"max": 1})
    run = cluster.start()
    cluster.until_state(run, "running")
    for name in lab.names[:2]:
        lab.partition(name, between="ctl")
    cluster.run("stop", run, "--grace", "1", expect=11)
    assert cluster.processes(run), "nobody could hear it"
    lab.restore()
    until(lambda: not cluster.processes(run), within=120, what="the supervisor hands the stop on")
    until(lambda: "cancelled" in _supervisor_log(cluster, run), within=120, what="the verdict")
    cluster.run("resume", "-d", run)
    said = cluster.run("status", run).stderr + cluster.run("status", run).stderr
    assert "had not heard" not in said
    cluster.until_state(run, "running")
    cluster.run("stop", run, "--grace", "1")
    assert cluster.verdict(run)["verdict"] == "cancelled"


def test_a_resume_from_elsewhere_makes_such_a_stop_void(tmp_path: Path, lab: Lab) -> None:
    """Another machine has resumed the run before b was told: here `status` says so, and ends nothing."""
    cluster = Cluster(folder=tmp_path / "c", lab=lab)
    cluster.write_script(scripts.SLEEPER, train={"launcher": "direct"})
    run = cluster.start()
    cluster.until_state(run, "running")
    lab.partition("node1", between="ctl")
    cluster.run("stop", run, "--grace", "1", expect=11)
    lab.heal("node1")
    elsewhere = {"HOME": str(tmp_path)}
    cluster.run("resume", "-d", run, env=elsewhere)
    until((cluster.run_dir("b", run) / "attempt-2/rank-1.log").exists, what="b's next attempt")
    assert f"{run} was resumed since: the stop that b had not heard of" in cluster.run("status", run).stderr
    cluster.until_state(run, "running")
    cluster.run("stop", run, "--grace", "1")
    assert cluster.verdict(run)["verdict"] == "cancelled"
    assert not cluster.processes(run)


def _supervisor_log(cluster: Cluster, run: str) -> str:
    return "".join(log.read_text() for log in cluster.home.rglob(f"{run}.log"))
