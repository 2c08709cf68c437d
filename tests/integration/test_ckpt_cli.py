"""`llmctl ckpt` as a person uses it: any place that holds checkpoints, by the real command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmctl.storage.files import open_store
from llmctl.wire.manifests import COMMIT_MARKER, checkpoint_name
from tests.contract.stores import store_uri
from tests.integration.cluster import Cluster
from tests.unit.storage.test_checkpoints import put
from tests.worker_kit import make_corpus


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(folder=tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Four whole checkpoints on a disk, 10 to 40."""
    store = open_store(str(tmp_path / "place"))
    for step in (10, 20, 30, 40):
        put(store, step, os.urandom(100_000))
    return tmp_path / "place"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def steps(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_ls_says_what_is_there(cluster: Cluster, place: Path) -> None:
    """Whole ones, one without a marker, one with a file missing: each with its state, and why."""
    (place / checkpoint_name(20) / COMMIT_MARKER).unlink()
    (place / checkpoint_name(30) / "a").unlink()
    text = cluster.run("ckpt", "ls", str(place)).stdout
    assert [line.split()[1] for line in text.splitlines()] == [
        *("STATE", "committed", "unfinished", "damaged", "committed")
    ]
    found = cluster.json("ckpt", "ls", str(place))["checkpoints"]
    assert [one["step"] for one in found] == [10, 20, 30, 40]
    assert found[0]["world_size"] == 2
    assert found[0]["bytes"] == 100_000
    assert found[2]["problem"] == "a missing"


def test_verify_names_every_damage_and_fails(cluster: Cluster, place: Path) -> None:
    """Two damaged checkpoints of four: --all names both files, exit 21; the newest alone is good."""
    flip(place / checkpoint_name(10) / "a")
    flip(place / checkpoint_name(30) / "a")
    assert cluster.run("ckpt", "verify", str(place)).stdout == ""
    bad = cluster.run("ckpt", "verify", str(place), "--all", expect=21)
    lines = bad.stdout.splitlines()
    assert [line.split("/")[-2] for line in lines] == [checkpoint_name(10), checkpoint_name(30)]
    assert "checkpoint 10, 30: 2 files not as saved" in bad.stderr
    document = json.loads(
        cluster.run("ckpt", "verify", str(place), "--step", "30", "-o", "json", expect=21).stdout
    )
    (one,) = document["checkpoints"]
    assert one["step"] == 30
    assert [finding["path"] for finding in one["findings"]] == ["step-00000030/a"]
    assert cluster.run("ckpt", "verify", str(place), "--step", "7", expect=102)


def test_prune_says_first_and_keeps_the_last_good_one(cluster: Cluster, place: Path) -> None:
    """A dry run removes nothing; with the newest damaged, the one before it is what stays of one."""
    flip(place / checkpoint_name(40) / "a")
    before = steps(place)
    told = cluster.run("ckpt", "prune", str(place), "--keep", "1", "--dry-run").stdout.splitlines()
    assert told[0].split() == ["keep", "30"]
    assert [line.split()[1] for line in told[1:3]] == ["10", "20"]
    assert told[3].startswith("damaged 40")
    assert steps(place) == before
    document = cluster.json("ckpt", "prune", str(place), "--keep", "1", "--keep-every", "20")
    assert document["kept"] == [20, 30]
    assert [one["step"] for one in document["removed"]] == [10]
    assert steps(place) == [checkpoint_name(step) for step in (20, 30, 40)]


def test_prune_refuses_where_nothing_is_good(cluster: Cluster, place: Path) -> None:
    """All damaged: exit 21, nothing is removed."""
    for step in (10, 20, 30, 40):
        flip(place / checkpoint_name(step) / "a")
    before = steps(place)
    assert (
        "not one checkpoint is good"
        in cluster.run("ckpt", "prune", str(place), "--keep", "1", expect=21).stderr
    )
    assert steps(place) == before


def test_damaged_ones_go_when_asked_for(cluster: Cluster, place: Path) -> None:
    """Shown first, and not one without a yes; then each of them, newer than the good ones or not."""
    (place / checkpoint_name(20) / "a").unlink()
    flip(place / checkpoint_name(40) / "a")
    before = steps(place)
    told = cluster.run("ckpt", "prune", str(place), "--damaged", "--dry-run").stdout.splitlines()
    assert told[0].split() == ["keep", "10,", "30"]
    assert [line.split()[:2] for line in told[1:]] == [["remove", "20"], ["remove", "40"]]
    assert "step-00000040/a: expected sha256" in told[2]
    assert "--yes" in cluster.run("ckpt", "prune", str(place), "--damaged", expect=2).stderr
    assert "--keep" in cluster.run("ckpt", "prune", str(place), "--damaged", "--keep", "1", expect=2).stderr
    assert steps(place) == before
    document = cluster.json("ckpt", "prune", str(place), "--damaged", "--yes")
    assert (document["kept"], [one["step"] for one in document["removed"]]) == ([10, 30], [20, 40])
    assert steps(place) == [checkpoint_name(step) for step in (10, 30)]
    assert "remove  nothing" in cluster.run("ckpt", "prune", str(place), "--damaged").stdout


def test_prune_removes_what_the_dead_left(cluster: Cluster, place: Path) -> None:
    """Rests stay while they are young, because their writer may live, and go when they are old."""
    for name in (".tmp-step-00000050-demo-1.part", checkpoint_name(60)):
        (place / name).mkdir()
        (place / name / "half").write_bytes(b"x")
    cluster.run("ckpt", "prune", str(place), "--keep", "9")
    assert len(steps(place)) == 6
    cluster.run("ckpt", "prune", str(place), "--keep", "9", "--older-than", "0")
    assert steps(place) == [checkpoint_name(step) for step in (10, 20, 30, 40)]


def test_wrong_words_end_in_one_line(cluster: Cluster, place: Path) -> None:
    """A place that is not there, a step that is not there, both ways at once, a store of no known kind."""
    assert "no such folder" in cluster.run("ckpt", "ls", str(place / "nosuch"), expect=102).stderr
    assert "exclude" in cluster.run("ckpt", "verify", str(place), "--all", "--step", "1", expect=2).stderr
    assert cluster.run("ckpt", "ls", "nosuch://x", expect=2)
    assert cluster.run("ckpt", "prune", str(place), expect=2)
    assert steps(place) == [checkpoint_name(step) for step in (10, 20, 30, 40)]


@pytest.mark.torch
def test_a_run_whose_checkpoints_lie_on_its_hosts(cluster: Cluster, tmp_path: Path) -> None:
    """`ls RUN` shows each host's copy; verify says how to get them; the pulled run is verified there."""
    corpus = make_corpus(tmp_path / "corpus")
    model = {"size": "tiny", "layers": 1, "dim": 32, "heads": 2, "kv_heads": 2, "ffn_dim": 64}
    cluster.write_job(
        data={"uri": str(corpus)},
        recipe={"steps": 4, "global_batch": 4, "sequence_length": 16, "threads": 1, "model": model},
        checkpoint={"every": 2, "keep": 2},
    )
    run_id = cluster.start("--no-pull")
    cluster.until_state(run_id, "succeeded", within=120)
    found = cluster.json("ckpt", "ls", run_id)["checkpoints"]
    assert [(one["step"], one["state"], sorted(one["hosts"])) for one in found] == [
        (2, "committed", ["a", "b"]),
        (4, "committed", ["a", "b"]),
    ]
    assert found[0]["parameters"] > 1000
    assert "llmctl pull" in cluster.run("ckpt", "verify", run_id, expect=2).stderr
    cluster.run("pull", run_id, "--checkpoints", "all")
    document = cluster.json("ckpt", "verify", f"llmctl-runs/{run_id}", "--all")
    assert [one["findings"] for one in document["checkpoints"]] == [[], []]


@pytest.mark.stores
@pytest.mark.parametrize("kind", ["s3-https", "hdfs", "webhdfs"])
def test_every_verb_on_a_real_store(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """List, find a flipped byte, prune around it, and nothing but what should stay is left."""
    uri = store_uri(request, kind, tmp_path, monkeypatch)
    store = open_store(uri)
    for step in (1, 2, 3):
        put(store, step, b"weights")
    store.write_bytes(f"{checkpoint_name(3)}/a", b"wEights")
    assert [one["state"] for one in cluster.json("ckpt", "ls", uri)["checkpoints"]] == ["committed"] * 3
    bad = cluster.run("ckpt", "verify", uri, "--all", expect=21)
    assert "step-00000003/a: expected sha256" in bad.stdout
    document = cluster.json("ckpt", "prune", uri, "--keep", "1")
    assert (document["kept"], [one["step"] for one in document["removed"]]) == ([2], [1])
    assert {file.path.split("/")[0] for file in store.list()} == {checkpoint_name(2), checkpoint_name(3)}
    document = cluster.json("ckpt", "prune", uri, "--damaged", "--yes")
    assert (document["kept"], [one["step"] for one in document["removed"]]) == ([2], [3])
    assert {file.path.split("/")[0] for file in store.list()} == {checkpoint_name(2)}
