"""`data send` on real hosts: a data set goes to a folder of each, once from here and then host to host."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import Cluster
from tests.lab.hosts import Lab

pytestmark = pytest.mark.hosts


@pytest.fixture
def cluster(tmp_path: Path, lab: Lab) -> Cluster:
    return Cluster(folder=tmp_path / "c", lab=lab)


def tars(cluster: Cluster, name: str, *texts: str) -> Path:
    """A data set with a tar for each text."""
    source = cluster.folder / f"{name}-files"
    source.mkdir()
    for number, text in enumerate(texts):
        (source / f"{number}.txt").write_text(text)
    made = cluster.folder / name
    cluster.run("data", "shard", str(source), str(made), "--format", "tar", "--shard-bytes", "1")
    return made


def sent(cluster: Cluster, source: Path, dest: str, *argv: str) -> dict[str, Any]:
    return dict(cluster.json("data", "send", str(source), dest, *argv)["hosts"])


def test_a_data_set_goes_once_from_here_and_on_from_host_to_host(cluster: Cluster) -> None:
    """b has it from a; again: nothing is sent but what is damaged or gone; another data set is refused."""
    first = tars(cluster, "first", "a" * 3000, "b" * 2000, "c" * 100)
    dest = f"~/{cluster.workname}/first"
    came = sent(cluster, first, dest, "--fan-out")
    assert came["a"]["source"] is None
    assert came["b"]["source"] == "a"
    whole = sum(path.stat().st_size for path in first.iterdir() if not path.name.startswith("."))
    assert came["b"]["bytes"] == came["a"]["bytes"] == whole

    there = [cluster.workdir(name) / "first" for name in "ab"]
    for folder in there:
        cluster.run("data", "verify", str(folder))
        assert not list(folder.rglob("*.part"))
    again = sent(cluster, first, dest, "--fan-out")
    assert [again[name]["bytes"] for name in "ab"] == [0, 0]

    (damaged,) = sorted(there[1].glob("*.tar"))[:1]
    damaged.write_bytes(damaged.read_bytes()[::-1])
    mended = sent(cluster, first, dest)
    assert [mended[name]["bytes"] for name in "ab"] == [0, damaged.stat().st_size]
    cluster.run("data", "verify", str(there[1]))

    before = sorted((path.name, path.read_bytes()) for path in there[0].iterdir())
    refused = cluster.run("data", "send", str(tars(cluster, "second", "z")), dest, "--fan-out", expect=21)
    assert "manifest.json is there and is another one" in refused.stderr
    assert sorted((path.name, path.read_bytes()) for path in there[0].iterdir()) == before


def test_the_folder_is_what_train_reads_and_a_full_disk_is_told(cluster: Cluster, lab: Lab) -> None:
    """`train` finds the corpus at DEST, equal on both; no room: refused before a byte is sent."""
    text = cluster.folder / "text.txt"
    text.write_text("to be or not to be\n" * 400)
    shards = cluster.folder / "shards"
    cluster.run("data", "shard", str(text), str(shards))
    dest = f"/root/{cluster.workname}/corpus"
    cluster.run("data", "send", str(shards), dest, "--limit", "a")
    cluster.write_job(data={"uri": dest}, recipe={"steps": 2}, train={"backend": "gloo"})
    assert "b" in cluster.run("train", "--dry-run", expect=10).stderr
    cluster.run("data", "send", str(shards), dest)
    cluster.run("train", "--dry-run")

    small = f"/root/{cluster.workname}/small"
    lab.on_host("node1", ["mkdir", "-p", small], check=True)
    lab.on_host("node1", ["mount", "-t", "tmpfs", "-o", "size=4k", "none", small], check=True)
    try:
        told = cluster.run("data", "send", str(shards), f"{small}/corpus", "--limit", "b", expect=21)
        assert "MB are free in" in told.stderr
        assert not list(lab.path("node1", small).rglob("*.*"))
    finally:
        lab.on_host("node1", ["umount", small], check=True)


def test_what_is_not_a_whole_data_set_here_is_not_sent(cluster: Cluster) -> None:
    """A missing file is told of before any host is asked; so is a store, and a relative folder."""
    made = tars(cluster, "made", "x")
    manifest = json.loads((made / "manifest.json").read_text())
    (made / manifest["shards"][0]["file"]["path"]).unlink()
    assert "No such file" in cluster.run("data", "send", str(made), "/data", expect=21).stderr
    assert "hosts read from stores" in cluster.run("data", "send", "s3://b/x", "/data", expect=2).stderr
    assert "must start with" in cluster.run("data", "send", str(made), "data", expect=2).stderr
    shutil.rmtree(made)
    cluster.run("data", "send", str(made), "/data", expect=102)
