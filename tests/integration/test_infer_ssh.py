"""`llmctl infer` over two real SSH hosts: one replica across both, and the tunnel to its endpoint."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.hf_kit import library
from tests.integration.cluster import Cluster, until
from tests.integration.infer_kit import infer_job, make_model
from tests.lab.hosts import Lab

pytestmark = [pytest.mark.hosts, pytest.mark.torch, pytest.mark.timeout(600)]

PLACE = "/srv/infer-model"
CLIENT = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=120.0)
asked = {"model": "infer-model", "prompt": "alpha", "max_tokens": 12, "temperature": 0}
whole = client.completions.create(**asked).choices[0].text
streamed = client.completions.create(**asked, stream=True)
assert "".join(chunk.choices[0].text for chunk in streamed) == whole
print("same", len(whole))
"""


def test_a_replica_over_two_hosts_is_reached_through_a_tunnel(tmp_path: Path, lab: Lab) -> None:
    """A pipeline over both hosts, checked against one process, answers the official client at this machine's
    port; Ctrl-C leaves it running, `tunnel` comes back, `stop` leaves nothing."""
    library("openai")
    cluster = Cluster(folder=tmp_path / "c", lab=lab)
    cluster.copy_to_hosts(make_model(cluster.folder / "model"), PLACE)
    infer_job(cluster, PLACE, parallel={"pp": 2}, check=True, max_batch=2)
    url, first = opened(cluster, "infer", "serve", "--port", "0")
    run = cluster.json("status")["runs"][0]["run_id"]
    assert "same" in asked(cluster, url)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=60) == 130
    url, second = opened(cluster, "infer", "tunnel", run, "--port", "0")
    assert "same" in asked(cluster, url)
    report = cluster.json("stop", run, "--grace", "20")
    assert all(host["left"] == [] for host in report["hosts"].values())
    assert second.wait(timeout=60) == 103
    log = (cluster.run_dir("a", run) / "attempt-1/rank-0.log").read_text()
    assert "checked: logits within" in log
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
