"""The main job on GPUs over NCCL; runs where there is one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA GPU on this machine"),
]


def test_the_recipe_trains_on_a_gpu(tmp_path: Path) -> None:
    """One rank on one GPU by NCCL's rules: the loss falls, and the stop check finds no GPU memory left."""
    cluster = Cluster(folder=tmp_path / "c")
    text = cluster.folder / "text"
    text.mkdir()
    (text / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 4000)
    cluster.run("data", "shard", "text", "shards")
    small = {
        "model": {"size": "tiny"},
        "steps": 30,
        "global_batch": 8,
        "micro_batch": 8,
        "sequence_length": 64,
    }
    cluster.write_job(nodes=1, data={"uri": "shards"}, recipe=small, train={"backend": "nccl"})
    done = cluster.run("train")
    assert "succeeded at step 30/30" in done.stdout
    assert "ranks on cuda" in done.stderr
    report = cluster.json("stop", cluster.json("status")["runs"][0]["run_id"])
    assert report["hosts"]["a"]["left"] == []
