"""A slow host of a real run: left out of the next attempt, or given a smaller share of each batch."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import Cluster, until
from tests.integration.spoiled import write_spoil

pytestmark = pytest.mark.torch

# In the first attempt rank 1 takes 0.05 s longer for each of its samples.
FAULT = """
def spoil(step):
    run = step.PlainRunner.run
    def slow(self, batch):
        time.sleep(0.05 * len(batch.inputs))
        return run(self, batch)
    step.PlainRunner.run = slow
"""
SMALL = {"size": "tiny", "layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn_dim": 64}
RECIPE = {"model": SMALL, "steps": 300, "global_batch": 8, "micro_batch": 4, "sequence_length": 32}
LONG_S = 200.0


def test_a_slow_host_is_left_out_or_gets_less(tmp_path: Path) -> None:
    """Both policies act at the next attempt only, use each sample exactly once, and reach the same loss."""
    cluster = Cluster(folder=tmp_path / "c")
    text, faults = cluster.folder / "text", cluster.folder / "faults"
    text.mkdir()
    (text / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 2000)
    write_spoil(faults, FAULT)
    cluster.run("data", "shard", "text", "shards", "--workers", "1")
    alone = _ended(cluster, "exclude", min_nodes=1)
    assert alone["hosts"] == ["a"]
    assert re.match(r"left out: b is slow: \S+ s of its own per step \(rank 1\)", alone["note"])
    shared = _ended(cluster, "rebalance")
    assert shared["hosts"] == ["a", "b"]
    assert re.match(r"batch shared by speed \(samples/s of a rank: a \S+, b \S+\)", shared["note"])
    assert shared["shares"][0] > shared["shares"][1] >= 1
    assert sum(shared["shares"]) == 8
    assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-3)


def test_a_policy_that_can_do_nothing_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """FSDP between hosts, and hosts that are all needed: told with what to use instead."""
    cluster = Cluster(folder=tmp_path / "c")
    (cluster.folder / "text").mkdir()
    (cluster.folder / "text/a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 2000)
    cluster.run("data", "shard", "text", "shards", "--workers", "1")
    kept = {"uri": str(cluster.folder / "kept")}
    job: dict[str, Any] = {"data": {"uri": "shards"}, "recipe": RECIPE}
    cluster.write_job(**job, watch={"slow": "exclude"})
    assert "set restarts.min_nodes below 2" in cluster.run("train", "-d", expect=2).stderr
    cluster.write_job(**job, watch={"slow": "rebalance"}, parallel={"dp_shard": 2}, checkpoint=kept)
    assert "fsdp 2 every rank waits for others" in cluster.run("train", "-d", expect=2).stderr
    assert cluster.json("status")["runs"] == []


def _ended(cluster: Cluster, policy: str, **restarts: int) -> dict[str, Any]:
    """A run whose slow host was seen before one of its ranks was killed: what its second attempt was."""
    cluster.write_job(
        data={"uri": "shards"},
        recipe={**RECIPE, "tensorboard": False, "precision": "fp32"},
        checkpoint={"every": 10, "uri": str(cluster.folder / f"kept-{policy}")},
        env={"set": {"PYTHONPATH": str(cluster.folder / "faults")}},
        train={"launcher": "direct"},
        watch={"slow": policy},
        restarts={"max": 1, "backoff_s": 0, **restarts},
    )
    run = cluster.start()
    until(lambda: _told(cluster, run), within=LONG_S, what="the supervisor sees the slow host")
    os.kill(_rank(cluster, run, 0), signal.SIGKILL)
    cluster.run("wait", run, timeout=LONG_S)
    first, second = cluster.verdict(run)["attempts"]
    assert (first["hosts"], first["note"]) == (["a", "b"], "")
    assert second["step"] == RECIPE["steps"]
    assert "each exactly once" in cluster.run("data", "audit", run).stdout
    told = (cluster.run_dir("a", run) / "attempt-2/rank-0.log").read_text()
    shares = re.search(r"by speed: ([0-9 +]+)", told)
    loss = cluster.json("status", run)["run"]["loss"]
    until(lambda: not cluster.processes(run), what="all gone")
    return {**second, "loss": loss, "shares": [int(n) for n in shares[1].split(" + ")] if shares else []}


def _told(cluster: Cluster, run: str) -> bool:
    """The run's supervisor has seen the slow host."""
    return any("next time: b is slow" in log.read_text() for log in cluster.home.rglob(f"{run}.log"))


def _rank(cluster: Cluster, run: str, rank: int) -> int:
    """The rank's process itself."""
    mark = f"RANK={rank}".encode()
    found = [
        pid
        for pid in cluster.processes(run)
        if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        and b"llmctl.worker.train" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return max(found)
