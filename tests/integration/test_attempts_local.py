"""Runs of several attempts on two local hosts: what the supervisor does, without SSH and without torch."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, until

FAILS_ONCE = '''
"""Rank 1 of the first attempt ends badly, the second attempt does its work."""
import os, sys, time
attempt, rank = int(os.environ["LLMCTL_ATTEMPT"]), os.environ["RANK"]
print(f"attempt {attempt} rank {rank}", flush=True)
if attempt == 1 and rank == "1":
    raise ValueError("bad sample 17")
if attempt == 1:
    time.sleep(600)
'''

FAILS_TWICE = """
import os, time
if os.environ["RANK"] == "1" and int(os.environ["LLMCTL_ATTEMPT"]) <= 2:
    raise SystemExit("bad sample 17")
time.sleep(600 if int(os.environ["LLMCTL_ATTEMPT"]) <= 2 else 0)
"""

FAILS_ALWAYS = """
import os, sys, time
if os.environ["RANK"] == "1":
    raise SystemExit("CUDA out of memory")
time.sleep(600)
"""

SLEEPER = """
import time
time.sleep(600)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(folder=tmp_path / "c")


def job(**restarts: object) -> dict[str, object]:
    return {"train": {"launcher": "direct"}, "restarts": {"backoff_s": 0.2, **restarts}}


def attempts(cluster: Cluster, run: str) -> list[tuple[object, ...]]:
    told = cluster.json("status", run, "--all")["run"]["supervision"] or {"attempts": []}
    return [(one["attempt"], one["state"], one["reason"]) for one in told["attempts"]]


def test_a_failed_attempt_is_followed_by_another_by_itself(cluster: Cluster) -> None:
    """One rank fails: the others end, the next attempt starts with nobody's help, `train` sees it through."""
    cluster.write_script(FAILS_ONCE, **job(max=2))
    done = cluster.run("train")
    assert "succeeded" in done.stdout
    assert "rank 1: exit 1 on b" in done.stderr
    (pulled,) = (cluster.folder / "llmctl-runs").glob("t-*")
    assert "attempt 2 rank 0" in (pulled / "a/attempt-2/rank-0.log").read_text()
    assert not cluster.processes(pulled.name)
    until(lambda: attempts(cluster, pulled.name)[-1][1] == "succeeded", what="the supervisor's last word")
    assert attempts(cluster, pulled.name) == [(1, "failed", "rank 1: exit 1 on b"), (2, "succeeded", "")]
    shown = cluster.run("status", pulled.name, "--all").stdout
    assert "attempt 1" in shown
    assert "rank 1: exit 1 on b" in shown


def test_what_is_not_to_be_tried_again_ends_the_run_at_once(cluster: Cluster) -> None:
    """A text of `no_retry_on` in the failing rank's last lines: one attempt, and the verdict says why."""
    cluster.write_script(FAILS_ALWAYS, **job(max=2, no_retry_on=["CUDA out of memory"]))
    done = cluster.run("train", expect=100)
    assert "`CUDA out of memory` is not tried again" in done.stdout
    run = cluster.json("status")["runs"][0]
    assert (run["state"], run["attempt"]) == ("failed", 1)
    assert not cluster.processes(run["run_id"])


def test_a_run_that_is_stopped_between_its_ends_and_starts_stays_stopped(cluster: Cluster) -> None:
    """`stop` while the next attempt is waited for: there is none, and the run is cancelled everywhere."""
    cluster.write_script(FAILS_ALWAYS, **job(max=3, backoff_s=600))
    run = started_and_pausing(cluster)
    cluster.run("wait", run, "--timeout", "1", expect=124)
    cluster.run("stop", run, "--grace", "1")
    cluster.until_state(run, "cancelled")
    assert cluster.run("wait", run, expect=103).stdout.startswith(f"{run} was stopped")
    assert not (cluster.run_dir("a", run) / "attempt-3").exists()
    assert not cluster.processes(run)


@pytest.mark.parametrize("dead", [True, False], ids=["dead", "waiting"])
def test_a_supervisor_is_replaced_by_resume_and_the_old_one_can_do_nothing(
    cluster: Cluster, dead: bool
) -> None:
    """Killed, or waiting for its back-off: `resume` takes over with a new epoch, and no other one is left."""
    cluster.write_script(FAILS_TWICE, **job(max=2, backoff_s=600))
    run = started_and_pausing(cluster)
    old = supervisor_pid(run)
    if dead:
        os.kill(old, signal.SIGKILL)
    cluster.run("resume", run, "--take-over")
    assert cluster.run("wait", run).returncode == 0
    assert cluster.json("status", run, "--all")["run"]["supervision"]["epoch"] == 2
    until(lambda: not Path(f"/proc/{old}/exe").exists(), what="the old one ends")
    said = "".join(log.read_text() for log in cluster.home.rglob(f"{run}.log"))
    assert ("another supervisor acts" in said) is not dead


def started_and_pausing(cluster: Cluster) -> str:
    """A run whose second attempt in a row has failed, and whose third waits for its back-off."""
    run = cluster.start()
    until(lambda: [one[1] for one in attempts(cluster, run)] == ["failed", "failed"], what="two failures")
    cluster.until_state(run, "restarting")
    return run


def supervisor_pid(run: str) -> int:
    """The process that takes care of this very run."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"supervise" in words and run.encode() in words:
                return int(folder.name)
    raise AssertionError(f"no supervisor of {run}")
