"""`llmctl infer batch` on two local hosts: what dies, hangs or is killed in the middle costs no line."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import Cluster, until
from tests.integration.infer_kit import (
    infer_job,
    kill,
    log,
    make_model,
    prompts,
    records,
    replicas,
    run_batch,
)

pytestmark = [pytest.mark.torch, pytest.mark.timeout(1200)]

LINES = 48
BAD = {7: "not json", 8: "", 30: '{"id": "n30"}'}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(folder=tmp_path / "c")


def restarts(cluster: Cluster, run: str) -> str:
    return "".join(line for line in log(cluster, run).splitlines() if "it is started again" in line)


def parts(cluster: Cluster) -> list[Path]:
    return sorted((cluster.folder / "out").glob("part-*.jsonl"))


def test_a_batch_survives_its_replicas_and_itself(cluster: Cluster, model: Path) -> None:
    """kill -9 of a replica, SIGSTOP of one, kill -9 of the whole batch: after it is run again, every line is
    answered exactly once, in order, and the same prompt has the same text wherever it ran."""
    infer_job(cluster, model, max_batch=2, part_lines=4, hang_s=8.0)
    prompts(cluster.folder / "in.jsonl", LINES, max_tokens=400, bad=BAD)
    uris = ("--input", "in.jsonl", "--output", "out")
    run = cluster.run("infer", "batch", *uris, "-d").stdout.strip()
    until(lambda: len(parts(cluster)) >= 1, within=200, what="a first part")
    kill(replicas(run)[1], signal.SIGKILL)
    until(lambda: "replica 1" in restarts(cluster, run), within=200, what="the killed one was started again")
    kill(replicas(run)[0], signal.SIGSTOP)
    until(lambda: "it hangs" in log(cluster, run), within=200, what="the stopped one noticed")
    before = {part.name: part.stat().st_mtime_ns for part in parts(cluster)}
    with suppress(ProcessLookupError):
        kill(cluster.agent_pid("a", run), signal.SIGKILL)
    state = cluster.until_state(run, "failed", "succeeded")  # a fast machine may have come to its end
    until(lambda: not cluster.processes(run), what="nothing is left of the first run")
    assert (cluster.folder / "out/manifest.json").exists() == (state == "succeeded")

    assert "succeeded" in run_batch(cluster, *uris)
    for name, changed in before.items():
        assert (cluster.folder / "out" / name).stat().st_mtime_ns == changed, f"{name} was made again"
    check_answers(cluster.folder / "out")
    assert "succeeded" in run_batch(cluster, *uris)
    assert "another batch" in run_batch(cluster, *uris, "--max-tokens", "5", expect=100)


def check_answers(folder: Path) -> None:
    found = records(folder)
    assert [record["index"] for record in found] == list(range(LINES))
    wrong = {record["index"]: record["error"] for record in found if "error" in record}
    assert set(wrong) == set(BAD), wrong
    assert "not JSON" in wrong[7]
    assert wrong[8] == "the line is empty"
    texts: dict[int, set[str]] = {}
    for record in found:
        if "error" not in record:
            assert record["id"] == f"n{record['index']}"
            assert record["finish_reason"] in ("length", "stop")
            texts.setdefault(record["index"] % 6, set()).add(record["text"])
    assert {len(found) for found in texts.values()} == {1}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["lines"], manifest["errors"]) == (LINES, len(BAD))
    assert [part["path"] for part in manifest["parts"]] == [p.name for p in sorted(folder.glob("part-*"))]


def test_an_input_that_is_not_there_is_told_before_anything_starts(cluster: Cluster, model: Path) -> None:
    """A typo costs no launch and no load of the model: exit 10 with the host that was looked at."""
    infer_job(cluster, model)
    told = cluster.run("infer", "batch", "--input", "typo.jsonl", "--output", "out", expect=10).stderr
    assert f"a: data: {cluster.folder}/typo.jsonl is not there" in told
    assert cluster.json("status")["runs"] == []


def test_scores_and_embeddings(cluster: Cluster, model: Path) -> None:
    """`--task score` gives a log-likelihood per token, `embed` a vector per line; a dry run does nothing."""
    infer_job(cluster, model, max_batch=4)
    prompts(cluster.folder / "in.jsonl", 6, max_tokens=1)
    plan = cluster.run("infer", "batch", "--input", "in.jsonl", "--output", "o", "--dry-run").stdout
    assert "replica 1  b:0" in plan
    assert not (cluster.folder / "o").exists()
    run_batch(cluster, "--input", "in.jsonl", "--output", "scores", "--task", "score", "-j", "1x1")
    scored: list[dict[str, Any]] = records(cluster.folder / "scores")
    assert [len(record["token_logprobs"]) for record in scored] == [4, 3, 4, 4, 6, 3]
    assert all(record["logprob"] == pytest.approx(sum(record["token_logprobs"])) for record in scored)
    run_batch(cluster, "--input", "in.jsonl", "--output", "e", "--task", "embed", "-j", "1x1")
    assert {len(record["embedding"]) for record in records(cluster.folder / "e")} == {32}
