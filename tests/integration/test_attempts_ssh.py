"""Runs that outlive ranks and hosts, on real SSH hosts: killed, powered off, cut off, back again."""

from __future__ import annotations

import json
import os
import signal
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from llmctl.storage.corpus.shard import shard
from tests.integration import scripts
from tests.integration.cluster import Cluster, until
from tests.lab.hosts import Lab

pytestmark = pytest.mark.hosts

SHARDS = "/srv/shards-attempts"
LONG_S = 200.0


@pytest.fixture
def cluster(tmp_path: Path, lab: Lab) -> Cluster:
    return Cluster(folder=tmp_path / "c", lab=lab)


def supervision(cluster: Cluster, run: str) -> dict[str, Any]:
    return dict(cluster.json("status", run, "--all")["run"]["supervision"] or {})


def attempts(cluster: Cluster, run: str) -> list[dict[str, Any]]:
    return list(supervision(cluster, run).get("attempts", []))


def running_on(cluster: Cluster, run: str, *hosts: str, checkpoint: bool = False) -> dict[str, Any] | None:
    """The run's view once its newest attempt trains on just these hosts; `checkpoint`: and has saved one."""
    view = cluster.json("status", run, "--all")["run"]
    notes = (view["supervision"] or {}).get("attempts", [])
    fits = view["state"] == "running" and [node["host"] for node in view["nodes"]] == list(hosts)
    began = notes[-2]["checkpoint_step"] or 0 if len(notes) > 1 else 0
    saved = (view["checkpoint_step"] or 0) > began and view["step"] is not None
    return dict(view) if fits and (saved or not checkpoint) else None


@pytest.mark.slow
@pytest.mark.torch
def test_a_recipe_outlives_a_killed_rank_and_a_lost_master_and_grows_again(
    cluster: Cluster, lab: Lab, tmp_path: Path
) -> None:
    """kill -9 of a rank, then power-off of the master's host: each time the run goes on by itself from the
    last committed checkpoint, takes the host back in, and every sample of its lineage was used once."""
    made = tmp_path / "shards"
    shard([str(Path(sysconfig.get_path("stdlib")) / "json")], str(made))
    cluster.copy_to_hosts(made, SHARDS)
    model = {"size": "tiny", "layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn_dim": 64}
    recipe = {"model": model, "steps": 100_000, "global_batch": 4, "micro_batch": 2, "sequence_length": 32}
    cluster.write_job(
        data={"uri": SHARDS},
        recipe={**recipe, "precision": "fp32", "tensorboard": False},
        checkpoint={"every": 20, "keep": 2},
        restarts={"max": 9, "backoff_s": 0.2, "min_nodes": 1, "lease_s": 15},
    )
    run = cluster.start()
    until(lambda: running_on(cluster, run, "a", "b", checkpoint=True), within=LONG_S, what="first checkpoint")
    os.kill(_rank_pid(cluster, "b", run, 1), signal.SIGKILL)
    until(lambda: len(attempts(cluster, run)) == 2, within=LONG_S, what="the second attempt")
    until(lambda: running_on(cluster, run, "a", "b", checkpoint=True), within=LONG_S, what="it trains")
    first = attempts(cluster, run)[0]
    assert (first["state"], first["reason"]) == ("failed", "rank 1: SIGKILL on b")
    assert first["checkpoint_step"] >= 20
    lab.poweroff(cluster.lab_name("a"))
    until(lambda: running_on(cluster, run, "b", checkpoint=True), within=LONG_S, what="b goes on alone")
    assert attempts(cluster, run)[1]["reason"] == "a is lost"
    lab.start(cluster.lab_name("a"))
    until(lambda: running_on(cluster, run, "a", "b"), within=LONG_S, what="a takes part again")
    assert [one["state"] for one in attempts(cluster, run)] == ["failed", "lost", "regrown", "running"]
    until(lambda: running_on(cluster, run, "a", "b", checkpoint=True), within=LONG_S, what="it trains again")
    cluster.run("stop", run, "--grace", "5")
    assert not cluster.processes(run)
    audit = cluster.json("data", "audit", run)
    assert (audit["verdict"], audit["findings"]) == ("ok", [])


@pytest.mark.slow
def test_a_host_that_is_cut_off_ends_its_ranks_before_the_others_go_on(cluster: Cluster, lab: Lab) -> None:
    """No packet reaches b: its agent fences itself, and only then the next attempt starts on a. Healed, b has
    nothing of the run left."""
    restarts = {"max": 3, "backoff_s": 0.2, "min_nodes": 1, "lease_s": 15}
    cluster.write_script(scripts.SLEEPER, train={"launcher": "direct"}, restarts=restarts)
    run = cluster.start()
    until(lambda: running_on(cluster, run, "a", "b") and attempts(cluster, run), what="running")
    lab.partition(cluster.lab_name("b"))
    exit_file = cluster.run_dir("b", run) / "attempt-1/exit.json"
    until(lambda: running_on(cluster, run, "a"), within=LONG_S, what="a goes on alone")
    ended = json.loads(exit_file.read_text())
    assert (ended["state"], ended["reason"]) == ("failed", "fenced: no word of the supervisor for 15 s")
    assert ended["ended_at"] < attempts(cluster, run)[1]["started_at"]
    lab.heal(cluster.lab_name("b"))
    until(lambda: cluster.json("status", run, "--all")["run"]["state"] == "running", what="still running")
    cluster.run("stop", run, "--grace", "1")
    cluster.until_state(run, "cancelled")
    assert not cluster.processes(run)


def test_lost_ssh_alone_ends_nothing(cluster: Cluster, lab: Lab) -> None:
    """Only our way to b is cut, its peer still reaches it: lost-contact, and every rank goes on."""
    cluster.write_script(scripts.SLEEPER, train={"launcher": "direct"}, restarts={"max": 3})
    run = cluster.start()
    until(lambda: running_on(cluster, run, "a", "b") and attempts(cluster, run), what="running")
    lab.partition(cluster.lab_name("b"), between="ctl")
    until(lambda: "no contact with b" in supervision(cluster, run).get("detail", ""), what="it is noticed")
    assert cluster.state(run) == "lost-contact"
    lab.heal(cluster.lab_name("b"))
    cluster.until_state(run, "running")
    assert [one["attempt"] for one in attempts(cluster, run)] == [1]
    cluster.run("stop", run, "--grace", "1")
    cluster.until_state(run, "cancelled")


def _rank_pid(cluster: Cluster, host: str, run: str, rank: int) -> int:
    """The rank itself, not its shim, as this machine counts."""
    mark = f"LLMCTL_RUN_ID={run}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                names = (folder / "environ").read_bytes().split(b"\0")
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if (
                mark in names
                and f"RANK={rank}".encode() in names
                and words[1:4] == [b"-u", b"-m", b"llmctl.worker.train"]
            ):
                return int(folder.name)
    raise AssertionError(f"no rank {rank} on {host}")
