"""What `logs` refuses, and what `status -w` prints, on two local hosts."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration import scripts
from tests.integration.cluster import Cluster, until


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    """A rank or attempt that the run hasn't is an error that lists what there is, not an empty log."""
    cluster = Cluster(folder=tmp_path / "c")
    cluster.write_script(scripts.SLEEPER, train={"launcher": "direct"})
    run = cluster.start()
    try:
        cluster.until_state(run, "running")
        rank = cluster.run("logs", run, "--rank", "9", expect=None)
        assert rank.returncode != 0
        assert "a 0, b 1" in rank.stderr
        elsewhere = cluster.run("logs", run, "--rank", "0", "--host", "b", expect=None)
        assert elsewhere.returncode == rank.returncode
        attempt = cluster.run("logs", run, "--attempt", "7", "-f", expect=rank.returncode)
        assert "no attempt 7" in attempt.stderr
        assert cluster.run("logs", run, "-n", "-5", expect=2).stdout == ""
        until(lambda: "b:1 tick" in cluster.run("logs", run, "--rank", "1").stdout, what="rank 1")
        refreshes_are_lines(cluster, run)
    finally:
        cluster.run("stop", run, "--grace", "1")


def refreshes_are_lines(cluster: Cluster, run: str) -> None:
    """`status RUN -w -o json` prints one document per line, again and again."""
    with cluster.popen("status", run, "-w", "-o", "json") as watching:
        assert watching.stdout is not None
        try:
            documents = [json.loads(watching.stdout.readline()) for _ in range(2)]
        finally:
            watching.terminate()
    assert [(d["kind"], d["run"]["run_id"], d["error"]) for d in documents] == [("run", run, None)] * 2
