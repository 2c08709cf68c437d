"""The recipe's last checkpoint: on a stop that asks for it, and on a host that is going down."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, until

pytestmark = pytest.mark.torch


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Two local hosts and a run of the recipe that would last for hours, without regular checkpoints."""
    made = Cluster(folder=tmp_path / "c")
    text = made.folder / "text"
    text.mkdir()
    (text / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    made.run("data", "shard", "text", "shards", "--workers", "1")
    return made


def start(cluster: Cluster, **train: object) -> str:
    model = {"size": "tiny", "layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn_dim": 64}
    small = {"model": model, "steps": 1000000, "global_batch": 4, "micro_batch": 2, "sequence_length": 32}
    cluster.write_job(
        data={"uri": "shards"},
        recipe={**small, "tensorboard": False, "precision": "fp32"},
        checkpoint={"every": 0},
        restarts={"max": 0},
        train=train,
    )
    run = cluster.start()
    until(lambda: (cluster.json("status", run)["run"]["step"] or 0) > 3, within=120, what="steps")
    return run


def test_stop_with_a_checkpoint_keeps_the_last_step(cluster: Cluster) -> None:
    """Under torchrun, whose own patience is shorter than the grace, the last step is in the checkpoint."""
    run = start(cluster, grace_s=1.0)
    report = cluster.json("stop", run, "--checkpoint")
    assert all(host["left"] == [] for host in report["hosts"].values()), report
    shown = cluster.json("status", run)["run"]
    assert shown["state"] == "cancelled"
    assert shown["checkpoint_step"] == shown["step"]
    assert not cluster.processes(run)


def test_a_preempted_host_leaves_the_run_resumable(cluster: Cluster) -> None:
    """SIGTERM to one agent: all ranks save the step they are at, and the run counts as preempted."""
    run = start(cluster, launcher="direct")
    os.kill(cluster.agent_pid("b", run), signal.SIGTERM)
    cluster.until_state(run, "preempted", within=120)
    until(lambda: not cluster.processes(run), what="all gone")
    shown = cluster.json("status", run)["run"]
    assert shown["checkpoint_step"] == shown["step"]
    assert "was preempted at step" in cluster.run("wait", run, expect=103).stdout
