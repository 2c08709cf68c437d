"""Layouts over two real SSH hosts: each layer of the model, or each matrix, lies on both."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from llmctl.storage.corpus.shard import shard
from tests.integration.cluster import Cluster
from tests.lab.hosts import Lab

pytestmark = [pytest.mark.hosts, pytest.mark.torch, pytest.mark.timeout(600)]

SHARED = "/mnt/shared"
MODEL = {"size": "tiny", "layers": 2, "dim": 32, "heads": 4, "kv_heads": 2, "ffn_dim": 64}
RECIPE = {
    "model": MODEL,
    "steps": 20,
    "global_batch": 6,
    "micro_batch": 2,
    "sequence_length": 32,
    "precision": "fp32",
    "tensorboard": False,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> str:
    """Real text as shards in the folder that both hosts see."""
    made = tmp_path_factory.mktemp("corpus") / "shards"
    shard([str(Path(sysconfig.get_path("stdlib"), "json"))], str(made))
    Cluster(folder=tmp_path_factory.mktemp("copy"), lab=lab).copy_to_hosts(made, "/srv/layouts")
    return "/srv/layouts"


def losses(cluster: Cluster) -> list[float]:
    (path,) = (cluster.folder / "llmctl-runs").glob("t-*/a/attempt-1/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def train(folder: Path, lab: Lab, corpus: str, *argv: str, **keys: Any) -> list[float]:
    cluster = Cluster(folder=folder, lab=lab)
    place = f"{SHARED}/{cluster.workname}"
    cluster.write_job(data={"uri": corpus}, recipe=RECIPE, checkpoint={"uri": place}, **keys)
    cluster.run("train", *argv, timeout=300)
    return losses(cluster)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, lab: Lab, corpus: str) -> list[float]:
    """Twenty losses of one process on one host."""
    return train(tmp_path_factory.mktemp("alone"), lab, corpus, "-j", "1x1")


@pytest.mark.parametrize(
    ("parallel", "gate"),
    [
        ({"dp_replicate": 2}, 1e-5),
        ({"dp_shard": 2}, 1e-5),
        ({"pp": 2}, 1e-5),
        ({"tp": 2}, 5e-5),
    ],
    ids=["ddp", "fsdp", "pp", "tp"],
)
def test_two_hosts_train_as_one_process(
    parallel: dict[str, int], gate: float, tmp_path: Path, lab: Lab, corpus: str, alone: list[float]
) -> None:
    """`parallel: {...}` over SSH, proved by --self-check before step 1 and by twenty losses."""
    found = train(tmp_path / "c", lab, corpus, "--self-check", parallel=parallel)
    assert max(abs(a - b) for a, b in zip(alone, found, strict=True)) < gate


def test_shards_without_a_shared_place_are_refused_before_anything_starts(
    tmp_path: Path, lab: Lab, corpus: str
) -> None:
    """Two hosts, FSDP and no checkpoint.uri: one line with a way out, and no run."""
    cluster = Cluster(folder=tmp_path / "c", lab=lab)
    cluster.write_job(data={"uri": corpus}, recipe=RECIPE, parallel={"dp_shard": 2})
    done = cluster.run("train", expect=2)
    assert "without a shared store" in done.stderr
    assert "checkpoint.uri" in done.stderr
    assert cluster.json("status")["runs"] == []
