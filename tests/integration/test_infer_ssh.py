"""`llmctl infer` over two real SSH hosts, with real weights: the same answers in every layout; the tunnel."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.hf_kit import library
from tests.integration.cluster import Cluster, until
from tests.integration.infer_kit import infer_job, records, run_batch
from tests.lab.hosts import Lab
from tests.smollm2_kit import EXACT, NEW, TEXTS, Theirs, real_model, transformers_says

pytestmark = [pytest.mark.hosts, pytest.mark.torch, pytest.mark.timeout(900)]

PLACE = "/srv/infer-model"
LAYOUTS: dict[str, tuple[str, dict[str, int]]] = {
    "dp 2": ("2x1", {}),
    "tp 2": ("2x1", {"tp": 2}),
    "pp 2": ("2x1", {"pp": 2}),
    "tp 2 x pp 2": ("2x2", {"tp": 2, "pp": 2}),
}
"""Hosts x ranks, and what a replica's ranks are."""
CLIENT = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=120.0)
asked = {"model": "infer-model", "prompt": sys.argv[2], "max_tokens": 12, "temperature": 0}
whole = client.completions.create(**asked).choices[0].text
streamed = client.completions.create(**asked, stream=True)
assert "".join(chunk.choices[0].text for chunk in streamed) == whole
print(repr(whole))
"""


@pytest.fixture(scope="module")
def model() -> Path:
    return real_model()


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, Theirs]:
    """By prompt."""
    return transformers_says(model)


@pytest.fixture
def cluster(tmp_path: Path, lab: Lab, model: Path) -> Cluster:
    """Both hosts, with the model on each."""
    found = Cluster(folder=tmp_path / "c", lab=lab)
    found.copy_to_hosts(model, PLACE)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_over_hosts_says_what_transformers_says(
    cluster: Cluster, expected: dict[str, Theirs], layout: str
) -> None:
    """Real weights in fp32, by `infer batch`: the same text, log-probabilities within 1e-4, and the check
    before it began was made."""
    shape, parallel = LAYOUTS[layout]
    infer_job(cluster, PLACE, parallel=parallel, check=True, max_batch=1, max_tokens=64, part_lines=2)
    cluster.write_hosts(a={"slots": 2}, b={"slots": 2})
    lines = [json.dumps({"prompt": text, "max_tokens": NEW, "logprobs": 0}) for text in TEXTS]
    (cluster.folder / "in").mkdir()
    (cluster.folder / "in/in.jsonl").write_text("".join(line + "\n" for line in lines))
    place = f"/root/{cluster.workname}"
    cluster.copy_to_hosts(cluster.folder / "in", f"{place}/in")
    uris = ("--input", f"{place}/in/in.jsonl", "--output", f"{place}/out")
    run_batch(cluster, *uris, "-j", shape)
    answers = records(cluster.workdir("a") / "out")
    for answer, theirs in zip(answers, expected.values(), strict=True):
        assert answer["text"] == theirs.text
        logprobs = [one["logprob"] for one in answer["logprobs"]]
        assert logprobs == pytest.approx(theirs.logprobs, abs=EXACT, rel=0)
    (said,) = cluster.workdir("a").glob("runs/*/attempt-1/rank-0.log")
    checks = re.findall(r"checked: logits within (\S+) of one process", said.read_text())
    assert checks
    assert all(float(check) < EXACT for check in checks)


def test_a_replica_over_two_hosts_is_reached_through_a_tunnel(
    cluster: Cluster, expected: dict[str, Theirs]
) -> None:
    """A pipeline of real weights over both hosts gives the official client the text of transformers at this
    machine's port; Ctrl-C leaves it running, `tunnel` comes back, `stop` leaves nothing."""
    library("openai")
    infer_job(cluster, PLACE, parallel={"pp": 2}, max_batch=2, max_tokens=64)
    text = repr(expected[TEXTS[0]].text)
    url, first = opened(cluster, "infer", "serve", "--port", "0")
    run = cluster.json("status")["runs"][0]["run_id"]
    assert asked(cluster, url).strip() == text
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=60) == 130
    url, second = opened(cluster, "infer", "tunnel", run, "--port", "0")
    assert asked(cluster, url).strip() == text
    report = cluster.json("stop", run, "--grace", "20")
    assert all(host["left"] == [] for host in report["hosts"].values())
    assert second.wait(timeout=60) == 103
    assert not cluster.processes(run)


def opened(cluster: Cluster, *argv: str) -> tuple[str, subprocess.Popen[str]]:
    """(URL, the command that holds the tunnel to it)."""
    held = cluster.popen(*argv, stderr=subprocess.STDOUT)
    said: list[str] = []

    def read() -> None:
        assert held.stdout is not None
        with held.stdout:
            said.extend(iter(held.stdout.readline, ""))

    threading.Thread(target=read, daemon=True).start()
    found = until(
        lambda: re.search(r"http://127\.0\.0\.1:\d+/v1", "".join(said)) or held.poll() is not None,
        within=240,
        what="the URL",
    )
    assert isinstance(found, re.Match), "".join(said)
    return found[0], held


def asked(cluster: Cluster, url: str) -> str:
    """What the client prints, from where the lab's hosts are reached."""
    assert cluster.lab is not None
    python = cluster.argv()[-3]
    command = ["nsenter", f"--net={cluster.lab.net}", "--", python, "-c", CLIENT, url, TEXTS[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
