"""`llmctl data audit RUN` as a person uses it: on hosts, on a pulled folder, where nothing is to prove."""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster

MODEL = {"size": "tiny", "layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn_dim": 64}
RECIPE = {
    "model": MODEL,
    "steps": 6,
    "global_batch": 5,
    "micro_batch": 2,
    "sequence_length": 32,
    "threads": 1,
    "tensorboard": False,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cluster, Path]:
    """A finished run on two hosts, and the folder that it was pulled to."""
    cluster = Cluster(folder=tmp_path_factory.mktemp("audit") / "c")
    text = str(Path(sysconfig.get_path("stdlib"), "argparse.py"))
    cluster.run("data", "shard", text, "shards", "--shard-tokens", "30000", "--workers", "1")
    cluster.write_job(data={"uri": "shards"}, recipe=RECIPE, checkpoint={"every": 3})
    cluster.run("train")
    (pulled,) = (cluster.folder / "llmctl-runs").glob("t-*")
    return cluster, pulled


@pytest.mark.torch
def test_a_run_is_proven_by_its_id_and_by_its_pulled_folder(trained: tuple[Cluster, Path]) -> None:
    """The sentence, how much of the epoch was used, and the same from a folder without any host."""
    cluster, pulled = trained
    asked = cluster.run("data", "audit", pulled.name).stdout
    assert asked.splitlines()[0] == "steps 0-5: 30 samples, each exactly once (2 ranks)"
    assert "epoch 0 is 1 % used" in asked
    assert f"{cluster.folder / 'shards'} still is what was trained on" in asked
    folder = cluster.json("data", "audit", str(pulled))
    assert (folder["kind"], folder["verdict"], folder["findings"]) == ("audit", "ok", [])
    assert folder["attempts"] == [{"attempt": 1, "start": 0, "end": 6, "ranks": 2, "hosts": ["a", "b"]}]


@pytest.mark.torch
def test_only_what_is_new_is_fetched_and_a_lost_host_is_named(trained: tuple[Cluster, Path]) -> None:
    """Journals that were fetched once count on; of a host never seen, the proof stays open."""
    cluster, pulled = trained
    cluster.run("data", "audit", pulled.name)
    path = cluster.run_dir("b", pulled.name)
    shutil.move(path, away := path.with_name("away"))
    try:
        cluster.run("data", "audit", pulled.name)
        fresh = {"XDG_STATE_HOME": str(cluster.folder / "fresh")}
        ledger = cluster.home / ".local/state/llmctl"
        shutil.copytree(ledger, cluster.folder / "fresh/llmctl", ignore=shutil.ignore_patterns("journals"))
        done = cluster.run("data", "audit", pulled.name, "-o", "json", expect=21, env=fresh)
    finally:
        shutil.move(away, path)
    found = json.loads(done.stdout)
    assert found["verdict"] == "incomplete"
    assert [(one["kind"], one["rank"], one["host"]) for one in found["findings"]] == [("unknown", 1, "b")]


@pytest.mark.torch
def test_a_changed_journal_fails_the_audit(trained: tuple[Cluster, Path], tmp_path: Path) -> None:
    """Exit code 21, and the line that was changed is named."""
    cluster, pulled = trained
    shutil.copytree(pulled, tmp_path / "copy")
    path = tmp_path / "copy/b/attempt-1/consumed-1.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"samples":9', b'"samples":8', 1))
    done = cluster.run("data", "audit", str(tmp_path / "copy"), expect=21)
    assert "not each exactly once" in done.stdout
    assert "rank 1 on b: line 2 of its journal is damaged" in done.stdout
    assert "against its samples" in done.stderr


@pytest.mark.torch
def test_before_the_first_line_there_is_nothing_to_prove(
    trained: tuple[Cluster, Path], tmp_path: Path
) -> None:
    """A run that has not come so far is neither proven nor broken: exit code 101."""
    cluster, pulled = trained
    shutil.copytree(pulled, tmp_path / "copy")
    for path in (tmp_path / "copy").glob("*/attempt-1/consumed-*.jsonl"):
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    done = cluster.run("data", "audit", str(tmp_path / "copy"), expect=101)
    assert "cover no step yet" in done.stderr


def test_a_script_of_ones_own_has_no_journal(tmp_path: Path) -> None:
    """It is said that there is nothing to audit, and why."""
    cluster = Cluster(folder=tmp_path / "c")
    cluster.write_script("print('hello')\n", train={"launcher": "direct"})
    cluster.run("train", "--no-pull")
    done = cluster.run("data", "audit", "t", expect=102)
    assert "runs a script of its own, which keeps no journals" in done.stderr


def test_a_run_that_nobody_knows_is_said(tmp_path: Path) -> None:
    """Neither a data set nor a run, whatever it looks like."""
    cluster = Cluster(folder=tmp_path / "c")
    assert "shrads is no folder here, and no run `shrads`" in (
        cluster.run("data", "audit", "shrads", expect=102).stderr
    )
    assert "no run `demo-7f3a`" in cluster.run("data", "audit", "demo-7f3a", expect=102).stderr
