"""`llmctl infer` over two real SSH hosts: one replica of real weights across both, and the tunnel to it."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from tests.hf_kit import library, loaded
from tests.integration.cluster import Cluster, until
from tests.integration.infer_kit import infer_job
from tests.lab import smollm2
from tests.lab.hosts import Lab

pytestmark = [pytest.mark.hosts, pytest.mark.torch, pytest.mark.timeout(600)]

PLACE = "/srv/infer-model"
CLIENT = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=120.0)
asked = {"model": "infer-model", "prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
whole = client.completions.create(**asked).choices[0].text
streamed = client.completions.create(**asked, stream=True)
assert "".join(chunk.choices[0].text for chunk in streamed) == whole
print(repr(whole))
"""


@pytest.fixture(scope="module")
def model() -> Path:
    """The folder of SmolLM2-135M-Instruct."""
    library("transformers")
    library("gguf")
    if not smollm2.folder().is_dir():
        subprocess.run(smollm2.COMMAND, check=True, timeout=500)
    return smollm2.folder()


def expected(model: Path) -> str:
    """What transformers goes on with, greedily, in fp32."""
    words = library("transformers").AutoTokenizer.from_pretrained(model)
    ids = words("The capital of France is", return_tensors="pt")["input_ids"]
    made = loaded(model).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    return str(words.decode(made[0, ids.shape[1] :]))


def test_a_replica_over_two_hosts_is_reached_through_a_tunnel(tmp_path: Path, lab: Lab, model: Path) -> None:
    """A pipeline of real weights over both hosts, its logits checked against one process, gives the official
    client the text of transformers at this machine's port; Ctrl-C leaves it running, `tunnel` comes back,
    `stop` leaves nothing."""
    library("openai")
    cluster = Cluster(folder=tmp_path / "c", lab=lab)
    cluster.copy_to_hosts(model, PLACE)
    infer_job(cluster, PLACE, parallel={"pp": 2}, check=True, max_batch=2, max_tokens=64)
    text = repr(expected(model))
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
    log = (cluster.run_dir("a", run) / "attempt-1/rank-0.log").read_text()
    checked = re.search(r"checked: logits within (\S+) of one process", log)
    assert checked is not None
    assert float(checked[1]) < 1e-4
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
    command = ["nsenter", f"--net={cluster.lab.net}", "--", python, "-c", CLIENT, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
