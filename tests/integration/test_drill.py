"""`llmctl drill`: a run of its own is broken, comes back, and what is asserted is checked."""

from __future__ import annotations

import json
import signal
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from llmctl.storage.corpus.shard import shard
from tests.integration.cluster import Cluster, until
from tests.lab.hosts import Lab

SHARDS = "/srv/shards-drill"
LONG_S = 200.0
DRILL_S = 600.0
MODEL = {"size": "tiny", "layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn_dim": 64}
RECIPE = {"model": MODEL, "steps": 100_000, "global_batch": 4, "micro_batch": 2, "sequence_length": 32}


def write_job(cluster: Cluster, **keys: Any) -> None:
    cluster.write_job(
        **{
            "data": {"uri": SHARDS},
            "recipe": {**RECIPE, "precision": "fp32", "tensorboard": False},
            "checkpoint": {"every": 20, "keep": 2},
            "train": {"launcher": "direct"},
            "restarts": {"max": 2, "backoff_s": 0.2},
            **keys,
        }
    )


@pytest.mark.hosts
@pytest.mark.torch
def test_a_drill_kills_a_host_of_its_own_run_and_the_users_run_stays(lab: Lab, tmp_path: Path) -> None:
    """Refused while the user's run of that name has the hosts. Then agent and ranks of b are killed: it comes
    back with the same losses and an exact ledger; no file of the user's run or its checkpoints changed."""
    cluster = Cluster(folder=tmp_path / "c", lab=lab)
    made = tmp_path / "shards"
    shard([str(Path(sysconfig.get_path("stdlib")) / "json")], str(made))
    cluster.copy_to_hosts(made, SHARDS)
    write_job(cluster, checkpoint={"every": 20, "keep": 2, "uri": f"/mnt/shared/{cluster.workname}"})
    wanted = ("--kill", "host=1", "--at-step", "50", "--assert", "lost-steps<=200,ledger,loss")
    users = cluster.start()
    until(lambda: cluster.json("status", users)["run"]["checkpoint_step"], within=LONG_S, what="a checkpoint")
    assert users in cluster.run("drill", *wanted, expect=10).stderr
    assert cluster.state(users) == "running"
    cluster.run("stop", users)
    cluster.verdict(users)  # its supervisor writes a last word of its own, a moment after `stop`
    before = users_files(cluster, lab, users)
    told = json.loads(cluster.run("drill", *wanted, "-o", "json", timeout=DRILL_S).stdout)
    held = {check["name"]: check["held"] for check in told["checks"]}
    assert held == dict.fromkeys(("recovered", "lost-steps", "ledger", "loss", "clean"), True), told
    assert told["passed"]
    assert told["fault"]["host"] == "b"
    assert told["fault"]["step"] >= 50
    assert told["run_id"].startswith("t-drill-")
    assert not cluster.processes(told["run_id"])
    attempts = cluster.json("status", told["run_id"], "--all")["run"]["supervision"]["attempts"]
    assert attempts[0]["reason"].startswith("the agent died (killed, or the host rebooted) on b")
    assert users_files(cluster, lab, users) == before
    places = {
        place.name.removeprefix(cluster.workname)[:7] for place in lab.shared.glob(f"{cluster.workname}*")
    }
    assert places == {"", "-drill-"}


def users_files(cluster: Cluster, lab: Lab, run: str) -> dict[Path, tuple[int, int]]:
    """Everything of the user's run on both hosts and in its store: (size, time of the last change)."""
    roots = [cluster.run_dir("a", run), cluster.run_dir("b", run), lab.shared / cluster.workname]
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    assert len(files) > 20
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (["--kill", "rank=1"], "rank 1: SIGKILL on b"),
        pytest.param(
            ["--freeze", "rank=1"],
            "rank 1 (b) at stopped by a signal holds the others up",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["kill", "freeze"],
)
def test_a_drill_says_what_held_and_one_thing_that_did_not_fails_it(
    fault: list[str], reason: str, tmp_path: Path
) -> None:
    """One rank is killed, or stands still and is found: every line says what held, and an assertion that
    can't hold makes it exit 100."""
    cluster = Cluster(folder=tmp_path / "c")
    made = tmp_path / "shards"
    shard([str(Path(sysconfig.get_path("stdlib")) / "json")], str(made))
    write_job(cluster, data={"uri": str(made)}, watch={"hang": "10s"})
    wanted = ("--at-step", "30", "--assert", "ledger,loss,recovery<=0")
    done = cluster.run("drill", *fault, *wanted, expect=100, timeout=DRILL_S)
    lines = done.stdout.splitlines()
    held = [("✓", "recovered"), ("✓", "ledger"), ("✓", "loss"), ("✗", "recovery"), ("✓", "clean")]
    assert [tuple(line.split()[:2]) for line in lines[:5]] == held
    assert lines[5].endswith("the drill failed: recovery")
    assert f"after step 30: {fault[0].strip('-')} rank 1" in done.stderr
    run = lines[5].split(":")[0]
    assert not cluster.processes(run)
    first = cluster.json("status", run, "--all")["run"]["supervision"]["attempts"][0]
    assert reason in first["reason"]
    if "kill" in fault[0]:  # the other rank says what it missed
        log = (cluster.run_dir("a", run) / "attempt-1/rank-0.log").read_text()
        assert "Traceback (most recent call last)" in log


@pytest.mark.torch
def test_ctrl_c_ends_the_drill_and_its_run(tmp_path: Path) -> None:
    """While it waits for the step: exit 103, it says that nothing is left and how to look; nothing is."""
    cluster = Cluster(folder=tmp_path / "c")
    made = tmp_path / "shards"
    shard([str(Path(sysconfig.get_path("stdlib")) / "json")], str(made))
    write_job(cluster, data={"uri": str(made)})
    drill = cluster.popen("drill", "--kill", "rank=1", "--at-step", "90000", "-o", "json")
    (view,) = until(lambda: [run for run in cluster.json("status")["runs"] if run["step"]], within=LONG_S)
    run = view["run_id"]
    drill.send_signal(signal.SIGINT)
    out, said = drill.communicate(timeout=LONG_S)
    assert drill.returncode == 103, said
    assert f"interrupted; {run} is being stopped" in said
    (told,) = json.loads(out)["errors"]
    assert told["message"] == "the drill was interrupted; no process, port or GPU memory left on a, b"
    assert f"llmctl logs {run}" in told["hint"]
    assert not cluster.processes(run)
    assert cluster.state(run) == "cancelled"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--kill", "host=c"], "no such host in this job"),
        (["--kill", "host=2"], "no such host in this job"),
        (["--kill", "b"], "host=NAME, host=NUMBER or rank=NUMBER"),
        ([], "one of --kill and --freeze"),
        (["--kill", "host=1", "--freeze", "host=1"], "one of --kill and --freeze"),
        (["--kill", "host=1", "--assert", "lost-step<=3"], "does not know 'lost-step<=3'"),
        (["--kill", "host=1", "--assert", "lost-steps"], "wants a bound"),
        (["--kill", "host=1", "--at-step", "100000"], "must go on behind the fault"),
        (["--kill", "host=1", "--set", "restarts.max=0"], "nothing follows a failed attempt"),
    ],
)
def test_a_drill_that_can_show_nothing_is_refused_before_any_host_is_touched(
    argv: list[str], told: str, tmp_path: Path
) -> None:
    """Exit 2 and the reason; no host has anything of a run."""
    cluster = Cluster(folder=tmp_path / "c")
    write_job(cluster)
    done = cluster.run("drill", *argv, expect=2)
    assert told in done.stderr, done.stderr
    assert not cluster.workdir("a").exists()


def test_a_dry_run_tells_what_would_be_broken(tmp_path: Path) -> None:
    """The plan with the run's own name and place for checkpoints; nothing is started."""
    cluster = Cluster(folder=tmp_path / "c")
    write_job(cluster, checkpoint={"uri": "s3://bucket/mine"})
    plan = cluster.json("drill", "--kill", "host=b", "--at-step", "7", "--dry-run")["plan"]
    assert (plan["name"], plan["at_step"]) == ("t-drill", 7)
    assert plan["fault"] == "kill agent and ranks on b"
    assert plan["checkpoints"].startswith("s3://bucket/mine-drill-")
    assert not cluster.workdir("a").exists()
