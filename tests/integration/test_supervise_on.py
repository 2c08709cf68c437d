"""A run whose supervisor lives on one of its hosts: it recovers with the machine that started it gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, until
from tests.lab.hosts import Lab

pytestmark = pytest.mark.hosts

# The first attempt works until it is ended, the second one has nothing left to do once both ranks are there.
TWO_ATTEMPTS = """
import os, time
attempt = int(os.environ["LLMCTL_ATTEMPT"])
print(f"attempt {attempt} rank {os.environ['RANK']} secret {len(os.environ['A_TOKEN'])}", flush=True)
while attempt == 1 or os.path.exists("/mnt/shared/hold"):
    time.sleep(0.1)
"""
BARE = "/root/bare-python"
VALUE = "s3cr3t-that-stays-in-memory"
LONG_S = 300.0


@pytest.fixture
def cluster(tmp_path: Path, lab: Lab) -> Iterator[Cluster]:
    """Hosts a and b; neither has a key of its own yet, and nothing that a test gives it outlives the test."""
    made = Cluster(folder=tmp_path / "c", lab=lab)
    made.write_script(
        TWO_ATTEMPTS,
        train={"launcher": "direct"},
        restarts={"max": 3, "backoff_s": 0.2},
        env={"secrets": ["A_TOKEN"]},
    )
    yield made
    for name in "ab":
        for file in ("/root/.ssh/id_ed25519", "/root/.ssh/known_hosts", BARE):
            lab.path(made.lab_name(name), file).unlink(missing_ok=True)
    (lab.shared / "hold").unlink(missing_ok=True)


def give_key(cluster: Cluster, lab: Lab, name: str) -> None:
    """What an admin does once: this host can log in to the others."""
    key = lab.path(cluster.lab_name(name), "/root/.ssh/id_ed25519")
    key.touch(mode=0o600)
    key.write_bytes(lab.identity.read_bytes())


def started(cluster: Cluster, *more: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    return cluster.run("train", "-d", "--supervise-on", *more, expect=expect, env={"A_TOKEN": VALUE})


def test_a_host_that_can_not_supervise_is_refused_before_anything_starts(cluster: Cluster, lab: Lab) -> None:
    """A Python without llmctl's packages, no key, another host key than ours, no such host, nothing to
    supervise: each is told with what to do, and no host has a run."""
    bare = lab.path(cluster.lab_name("a"), BARE)
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    cluster.write_hosts(a={"python": BARE})
    refused = " ".join(started(cluster, "a", "--limit", "b", expect=10).stderr.split())
    assert "a: supervise: no supervisor can run under" in refused
    assert "-m pip install 'typer>=0.12'" in refused
    assert "llmctl hosts bootstrap a" in refused
    cluster.write_hosts()
    refused = started(cluster, "a", expect=10).stderr
    assert "b: supervise: a can't log in there by itself" in refused
    assert "accepted no key: there was no key to try" in refused
    assert "on a: ssh-keygen -t ed25519" in refused
    give_key(cluster, lab, "a")
    other = lab.identity.with_suffix(".pub").read_text()
    known = lab.path(cluster.lab_name("a"), "/root/.ssh/known_hosts")
    known.write_text(f"{lab.ips[cluster.lab_name('b')]} {other}")
    refused = started(cluster, "a", expect=10).stderr
    assert "the host key of" in refused
    assert "changed" in refused
    known.unlink()
    assert "hosts: a, b" in started(cluster, "c", expect=2).stderr
    cluster.write_script(TWO_ATTEMPTS, env={"secrets": ["A_TOKEN"]})
    assert "nothing to supervise" in started(cluster, "a", expect=2).stderr
    assert cluster.json("status")["runs"] == []
    assert not [path for name in "ab" for path in (cluster.workdir(name) / "runs").glob("[!.]*")]


def test_a_run_recovers_while_the_machine_that_started_it_is_gone(cluster: Cluster, lab: Lab) -> None:
    """`train` is killed and its network cut off, then a rank dies: the host forms the next attempt. The
    laptop, back again, reads the logs and hands the run to a supervisor on b; the run ends well."""
    give_key(cluster, lab, "a")
    give_key(cluster, lab, "b")
    (lab.shared / "hold").touch()
    said = cluster.folder / "said"
    with said.open("w") as out:
        command = subprocess.Popen(
            cluster.argv("train", "--supervise-on", "a"),
            cwd=cluster.folder,
            env=cluster.env(A_TOKEN=VALUE),
            stdout=out,
            stderr=out,
        )
    run = str(until(lambda: command.poll() is not None or _running(cluster), within=LONG_S, what="a run"))
    assert command.poll() is None, said.read_text()
    command.kill()
    command.wait()
    (supervisor,) = _supervisors(run)
    assert _host_of(supervisor, cluster, lab) == "a"
    for name in "ab":
        lab.partition(cluster.lab_name(name), between="ctl")
    os.kill(_rank(run, 1), signal.SIGKILL)
    log = cluster.run_dir("b", run) / "attempt-2/rank-1.log"
    until(lambda: log.exists() and log.read_text(), within=LONG_S, what="the second attempt")
    assert log.read_text() == f"attempt 2 rank 1 secret {len(VALUE)}\n"
    for name in "ab":
        lab.heal(cluster.lab_name(name))
    told = until(lambda: _told(cluster, run, attempts=2), within=LONG_S, what="it is seen again")
    assert told["attempts"][0]["reason"] == "rank 1: SIGKILL on b"
    kept = [path for path in (cluster.workdir("a") / "supervisor" / run).rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if VALUE.encode() in path.read_bytes()]
    assert "attempt 2 rank 1" in cluster.run("logs", run, "--tail", "50").stdout
    cluster.run(
        "resume", "-d", run, "--take-over", "--supervise-on", "b", env={"A_TOKEN": VALUE}, timeout=LONG_S
    )
    until(lambda: supervisor not in _supervisors(run), within=LONG_S, what="the replaced one ends")
    assert [_host_of(pid, cluster, lab) for pid in _supervisors(run)] == ["b"]
    (lab.shared / "hold").unlink()
    assert cluster.run("wait", run, timeout=LONG_S).returncode == 0
    told = cluster.json("status", run, "--all")["run"]["supervision"]
    assert (told["epoch"], len(told["attempts"])) == (2, 2)
    assert not cluster.processes(run)
    until(lambda: not _supervisors(run), within=LONG_S, what="no supervisor is left")


def test_a_stop_ends_the_run_and_its_supervisor_there(cluster: Cluster, lab: Lab) -> None:
    """The hosts tell that supervisor of a stop that was typed elsewhere: no process of either is left."""
    give_key(cluster, lab, "a")
    run = started(cluster, "a").stdout.strip()
    cluster.until_state(run, "running")
    assert "no process, port or GPU memory left" in cluster.run("stop", run, "--grace", "1").stdout
    assert cluster.verdict(run)["verdict"] == "cancelled"
    until(lambda: not _supervisors(run), within=LONG_S, what="no supervisor is left")
    assert not cluster.processes(run)


def _running(cluster: Cluster) -> str | None:
    """The id of a run that a supervisor takes care of."""
    runs = cluster.json("status")["runs"]
    if not runs or runs[0]["state"] != "running":
        return None
    return str(runs[0]["run_id"]) if _told(cluster, runs[0]["run_id"]) else None


def _told(cluster: Cluster, run: str, attempts: int = 1) -> dict[str, list[dict[str, object]]] | None:
    told = cluster.json("status", run, "--all")["run"]["supervision"]
    return told if told and len(told["attempts"]) == attempts else None


def _processes(run: str) -> Iterator[tuple[int, list[bytes], bytes]]:
    """(pid, words, environment) of all processes that name the run, in whatever namespace."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                environ = (folder / "environ").read_bytes()
            except OSError:
                continue
            if run.encode() in words or run.encode() in environ:
                yield int(folder.name), words, environ


def _supervisors(run: str) -> list[int]:
    return [pid for pid, words, _ in _processes(run) if words[1:4] == [b"-m", b"llmctl", b"supervise"]]


def _host_of(pid: int, cluster: Cluster, lab: Lab) -> str:
    """The host in whose process namespace it runs; empty: none of them."""
    space = Path(f"/proc/{pid}/ns/pid").readlink()
    inits = {name: Path(f"/proc/{lab.pid(cluster.lab_name(name))}/ns/pid").readlink() for name in "ab"}
    return next((name for name, own in inits.items() if own == space), "")


def _rank(run: str, rank: int) -> int:
    """The rank itself, not its shim."""
    mark = f"RANK={rank}".encode()
    found = [
        pid for pid, words, env in _processes(run) if b"train.py" in words[1:4] and mark in env.split(b"\0")
    ]
    assert found
    return max(found)
