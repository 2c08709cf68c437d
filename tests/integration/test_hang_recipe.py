"""The recipe on two hosts, one of which is slow and then stands still: both are seen and named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, until
from tests.integration.spoiled import write_spoil

pytestmark = pytest.mark.torch

# In the first attempt rank 1 works 0.3 s longer in each step, and never comes back from step 40.
FAULT = """
def stuck_in_a_lock():
    while True:
        time.sleep(1)

def spoil(step):
    run, count = step.PlainRunner.run, [0]
    def slow(self, batch):
        count[0] += 1
        time.sleep(0.3)
        if count[0] == 40:
            stuck_in_a_lock()
        return run(self, batch)
    step.PlainRunner.run = slow
"""


def test_a_slow_host_and_its_hang_are_named_and_the_run_goes_on(tmp_path: Path) -> None:
    """`status` names the slow host with numbers; the hang's reason names its rank and line; the next attempt
    goes on from the checkpoint to the end."""
    cluster = Cluster(folder=tmp_path / "c")
    text, faults = cluster.folder / "text", cluster.folder / "faults"
    text.mkdir()
    (text / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    write_spoil(faults, FAULT)
    cluster.run("data", "shard", "text", "shards", "--workers", "1")
    model = {"size": "tiny", "layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn_dim": 64}
    small = {"model": model, "steps": 45, "global_batch": 4, "micro_batch": 2, "sequence_length": 32}
    cluster.write_job(
        data={"uri": "shards"},
        recipe={**small, "tensorboard": False, "precision": "fp32"},
        checkpoint={"every": 20},
        env={"set": {"PYTHONPATH": str(faults)}},
        train={"launcher": "direct"},
        watch={"hang": "10s"},
        restarts={"max": 1, "backoff_s": 0},
    )
    run = cluster.start()
    slow = until(lambda: _stragglers(cluster, run), within=120, what="the slow host is named")
    assert re.match(r"b is slow: 0\.[3-9]\d s of its own per step \(rank 1\)", slow[0]), slow
    cluster.run("wait", run, timeout=200)
    first, second = cluster.verdict(run)["attempts"]
    assert re.match(
        r"hang: no step for \d+ s; rank 1 \(b\) at .*stuck_in_a_lock holds the others up", first["reason"]
    )
    assert (first["checkpoint_step"], second["step"]) == (20, 45)
    for rank, name in enumerate("ab"):
        stack = (cluster.run_dir(name, run) / f"attempt-1/stack-{rank}.txt").read_text()
        assert "llmctl/worker" in stack
    until(lambda: not cluster.processes(run), what="all gone")


def _stragglers(cluster: Cluster, run: str) -> list[str]:
    return list(cluster.json("status", run)["run"]["stragglers"])
