"""`llmctl infer serve` on two local hosts, by the official client; a crash, a leaver, a crowd, a stop."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.hf_kit import library
from tests.integration.cluster import Cluster, until
from tests.integration.infer_kit import infer_job, kill, log, make_model, replicas

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

KEY = "sk-a-test-key-of-ours"
LONG = 900


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, str, str]]:
    """(cluster, run id, base URL) of an endpoint with two replicas of one slot each and no queue."""
    cluster = Cluster(folder=tmp_path_factory.mktemp("serve") / "c")
    infer_job(
        cluster, make_model(cluster.folder / "model"), name="m", max_batch=1, queue=0, grace_s=60, hang_s=12.0
    )
    (cluster.folder / "key.txt").write_text(KEY + "\n")
    run = cluster.run("infer", "serve", "-d", "--port", "0", "--api-key-file", "key.txt").stdout.strip()
    metrics = cluster.run_dir("a", run) / "attempt-1/metrics.jsonl"
    until(lambda: log(cluster, run).count("is ready on") == 2, within=200, what="two replicas")
    until(lambda: metrics.exists() and '"endpoint"' in metrics.read_text(), what="the endpoint")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    (endpoint,) = [line for line in lines if line["kind"] == "endpoint"]
    yield cluster, run, f"http://{endpoint['address']}:{endpoint['port']}"
    cluster.run("stop", run, "--grace", "2")
    assert not cluster.processes(run)


@pytest.fixture
def client(serving: tuple[Cluster, str, str]) -> Iterator[Any]:
    openai = library("openai")
    with openai.OpenAI(base_url=serving[2] + "/v1", api_key=KEY, max_retries=0, timeout=120.0) as found:
        yield found


def counted(base: str, name: str) -> float:
    """A number of /metrics."""
    request = urllib.request.Request(f"{base}/metrics", headers={"Authorization": f"Bearer {KEY}"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - of our own server
        found = re.search(rf"(?m)^llmctl_infer_{re.escape(name)} (\S+)$", answer.read().decode())
    return float(found[1]) if found else 0.0


def idle(base: str) -> bool:
    return counted(base, "requests_running") == 0 and counted(base, "replicas_serving") == 2


def test_the_official_client(serving: tuple[Cluster, str, str], client: Any) -> None:
    """Completions and chats, whole and streamed, give the same text; log-probabilities, stops, refusals."""
    openai = library("openai")
    until(lambda: idle(serving[2]), what="idle")
    assert [model.id for model in client.models.list()] == ["m"]
    asked: dict[str, Any] = {"model": "m", "prompt": "alpha", "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=2)
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 24)
    assert whole.choices[0].finish_reason == "length"
    assert len(whole.choices[0].logprobs.token_logprobs) == 24
    streamed = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in streamed if c.choices) == whole.choices[0].text
    assert streamed[-1].usage == whole.usage
    messages = [{"role": "user", "content": "beta"}]
    talk: dict[str, Any] = {"model": "m", "messages": messages, "max_tokens": 24, "seed": 5}
    once, twice = (client.chat.completions.create(**talk).choices[0].message.content for _ in range(2))
    chunks = client.chat.completions.create(**talk, stream=True)
    assert once == twice == "".join(c.choices[0].delta.content or "" for c in chunks)
    text = client.completions.create(**asked).choices[0].text
    end = next(text[at : at + 2] for at in range(4, len(text)) if text.find(text[at : at + 2]) == at)
    stopped = client.completions.create(**asked, stop=[end]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (text.split(end)[0], "stop")
    for changes, error in (
        ({"n": 3}, openai.BadRequestError),
        ({"max_tokens": 0}, openai.BadRequestError),
        ({"prompt": "x" * 2000}, openai.BadRequestError),
        ({"model": "other"}, openai.NotFoundError),
        ({"extra_headers": {"Authorization": "Bearer wrong"}}, openai.AuthenticationError),
    ):
        with pytest.raises(error):
            client.completions.create(**{**asked, **changes})


def test_a_crowd_is_refused_and_a_leaver_frees_his_place(
    serving: tuple[Cluster, str, str], client: Any
) -> None:
    """More than fits is 429 with Retry-After; whoever hangs up in the middle ends his request's work."""
    openai = library("openai")
    base = serving[2]
    until(lambda: idle(base), what="idle")
    before = counted(base, "requests_cancelled_total")
    asked = {"model": "m", "prompt": "gamma", "max_tokens": LONG, "temperature": 0, "stream": True}
    streams = [client.completions.create(**asked) for _ in range(2)]
    with ThreadPoolExecutor(6) as threads:
        results = [threads.submit(client.completions.create, **asked) for _ in range(6)]
        answers = [result.exception() or result.result() for result in results]
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert refused, "two replicas of one slot took everything"
    assert all(isinstance(answer, openai.RateLimitError) for answer in refused), refused
    assert int(refused[0].response.headers["retry-after"]) >= 1
    for stream in (*streams, *(answer for answer in answers if not isinstance(answer, Exception))):
        stream.close()
    until(lambda: idle(base), what="the leavers' work has ended")
    assert counted(base, "requests_cancelled_total") > before


def test_a_killed_replica_costs_an_unshown_answer_nothing(
    serving: tuple[Cluster, str, str], client: Any
) -> None:
    """kill -9 of one replica: whole answers all come, and it is started again. One that is frozen: a stream
    that had begun there ends with an error, the other goes on."""
    openai = library("openai")
    cluster, run, base = serving
    until(lambda: idle(base), what="idle")
    before = counted(base, "replica_restarts_total"), counted(base, "requests_retried_total")
    asked = {"model": "m", "prompt": "delta", "max_tokens": LONG, "temperature": 0}
    with ThreadPoolExecutor(2) as threads:
        whole = [threads.submit(client.completions.create, **asked) for _ in range(2)]
        until(lambda: counted(base, "requests_running") == 2, what="both at work")
        kill(replicas(run)[0], signal.SIGKILL)
        answers = [one.result().choices[0] for one in whole]
    assert {answer.text for answer in answers} == {answers[0].text}
    assert counted(base, "requests_retried_total") > before[1]
    until(lambda: idle(base), within=120, what="the replica is back")
    assert counted(base, "replica_restarts_total") > before[0]

    streams = [client.completions.create(**asked, stream=True) for _ in range(2)]
    for stream in streams:
        next(iter(stream))
    kill(replicas(run)[1], signal.SIGSTOP)
    with ThreadPoolExecutor(2) as threads:
        ends = [one.exception() for one in [threads.submit(list, stream) for stream in streams]]
    assert sum(end is None for end in ends) == 1, ends
    assert [type(end) for end in ends if end is not None] == [openai.APIError]
    until(lambda: "replica 1: it hangs" in log(cluster, run), within=120, what="the frozen one was ended")
    until(lambda: idle(base), within=120, what="it is back")


def test_nobody_is_let_in_without_a_key(tmp_path: Path) -> None:
    """`--expose` without a key, and a key that is none, are refused before any host is asked."""
    cluster = Cluster(folder=tmp_path / "c")
    infer_job(cluster, "nowhere")
    (cluster.folder / "short").write_text("1234\n")
    for options, told in (
        (("--expose",), "needs an API key"),
        (("--expose", "--api-key-file", "short"), "holds no API key"),
        (("--api-key-file", "absent"), "absent"),
        (("--api-key-env", "NOT_SET"), "$NOT_SET holds no API key"),
    ):
        done = cluster.run("infer", "serve", *options, expect=2)
        assert told in done.stderr
    assert not list(cluster.folder.glob("host-*/runs"))


def test_a_stop_lets_the_last_answer_finish(tmp_path: Path) -> None:
    """`stop` during an answer: it comes whole, new requests are refused, and nothing is left."""
    openai = library("openai")
    cluster = Cluster(folder=tmp_path / "c")
    infer_job(cluster, make_model(cluster.folder / "model"), name="m", grace_s=100)
    shown = cluster.popen("infer", "serve", "--port", "0", "-j", "1x1", stderr=subprocess.STDOUT)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(iter(shown.stdout.readline, "")), daemon=True)
    reader.start()
    url = until(lambda: re.search(r"http://\S+/v1", "".join(said)), within=200, what="the URL")[0]
    run = cluster.json("status")["runs"][0]["run_id"]
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120.0) as client:
        asked = {"model": "m", "prompt": "zeta", "max_tokens": LONG, "temperature": 0}
        stream = iter(client.completions.create(**asked, stream=True))
        pieces = [next(stream)]
        stop = cluster.popen("stop", run, "--grace", "100")
        deadline = time.monotonic() + 60
        refused = False
        while not refused and time.monotonic() < deadline:
            try:
                client.completions.create(**{**asked, "max_tokens": 1})
            except openai.APIError:
                refused = True
        pieces += stream
    assert refused
    assert pieces[-1].choices[0].finish_reason in ("length", "stop")
    stop.communicate(timeout=120)
    assert stop.returncode == 0
    assert shown.wait(timeout=60) == 103
    reader.join(30)
    shown.stdout.close()
    assert not cluster.processes(run)
