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
