"""The planner on real hosts: the table for them, a run with `parallel: auto`, and plan against reality."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster

MODEL = {"size": "tiny", "layers": 4, "dim": 256, "heads": 8, "kv_heads": 4, "ffn_dim": 704}
RECIPE = {"model": MODEL, "steps": 2, "global_batch": 8, "micro_batch": 4, "sequence_length": 128}


@pytest.mark.torch
def test_a_run_with_auto_tells_the_layout_and_its_memory(tmp_path: Path) -> None:
    """The marked row of the table is what trains; at its end the run says what was planned and needed."""
    cluster = Cluster(folder=tmp_path / "c")
    text = cluster.folder / "text"
    text.mkdir()
    (text / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    cluster.run("data", "shard", "text", "shards", "--workers", "1")
    cluster.write_job(
        parallel="auto",
        data={"uri": "shards"},
        recipe={**RECIPE, "precision": "fp32"},
        checkpoint={"uri": "kept"},
        train={"launcher": "direct"},
    )
    told = cluster.json("plan")
    assert told["choice"]["name"] == "ddp 2"
    done = cluster.run("train")
    assert "layout ddp 2: the whole model fits one device" in done.stderr
    found = re.search(r"memory: planned (\d+\.\d+) GB, peak (\d+\.\d+) GB on rank \d", done.stderr)
    assert found is not None, done.stderr
    planned, peak = float(found[1]), float(found[2])
    assert abs(planned * 1e9 - told["choice"]["memory"]["total"]) < 1e7
    # Resident memory of so small a model is torch itself, which the plan takes as a constant.
    assert planned == pytest.approx(peak, rel=0.3)
