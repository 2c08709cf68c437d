"""`llmctl drill`: a run of its own is broken, comes back, and what is asserted is checked."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import pytest

from llmctl.storage.corpus.shard import shard
from tests.integration.cluster import Cluster
from tests.lab.hosts import Lab

SHARDS = "/srv/shards-drill"
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
def test_a_drill_kills_a_host_of_its_own_run_and_tells_what_held(lab: Lab, tmp_path: Path) -> None:
    """Agent and ranks of b are killed: it is back from a checkpoint with the same losses and an exact ledger,
    but an assertion that can't hold makes it 100; the user's run of that name and its checkpoints stay."""
    cluster = Cluster(folder=tmp_path / "c", lab=lab)
    made = tmp_path / "shards"
    shard([str(Path(sysconfig.get_path("stdlib")) / "json")], str(made))
    cluster.copy_to_hosts(made, SHARDS)
    write_job(cluster, checkpoint={"every": 20, "keep": 2, "uri": f"/mnt/shared/{cluster.workname}"})
    wanted = ("--kill", "host=1", "--at-step", "50", "--assert", "lost-steps<=200,ledger,loss,recovery<=0")
    told = cluster.json("drill", *wanted, expect=100)
    held = {check["name"]: check["held"] for check in told["checks"]}
    assert held == {
        "recovered": True,
        "lost-steps": True,
        "ledger": True,
        "loss": True,
        "recovery": False,
        "clean": True,
    }, told
    assert told["fault"]["host"] == "b"
    assert told["fault"]["step"] >= 50
    assert not told["passed"]
    assert told["run_id"].startswith("t-drill-")
    assert not cluster.processes(told["run_id"])
    attempts = cluster.json("status", told["run_id"], "--all")["run"]["supervision"]["attempts"]
    assert attempts[0]["reason"].startswith("the agent died (killed, or the host rebooted) on b")
    (place,) = lab.shared.glob(f"{cluster.workname}*")
    assert place.name.startswith(f"{cluster.workname}-drill-")


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
def test_a_drill_that_holds_is_passed(fault: list[str], reason: str, tmp_path: Path) -> None:
    """One rank is killed, or stands still and is found: exit 0, and every line says what held."""
    cluster = Cluster(folder=tmp_path / "c")
    made = tmp_path / "shards"
    shard([str(Path(sysconfig.get_path("stdlib")) / "json")], str(made))
    write_job(cluster, data={"uri": str(made)}, watch={"hang": "10s"})
    done = cluster.run("drill", *fault, "--at-step", "30", "--assert", "ledger,loss")
    lines = done.stdout.splitlines()
    held = [["✓", name] for name in ("recovered", "ledger", "loss", "clean")]
    assert [line.split()[:2] for line in lines[:4]] == held
    assert lines[4].endswith("the drill was passed")
    assert f"after step 30: {fault[0].strip('-')} rank 1" in done.stderr
    run = lines[4].split(":")[0]
    assert not cluster.processes(run)
    first = cluster.json("status", run, "--all")["run"]["supervision"]["attempts"][0]
    assert reason in first["reason"]


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
