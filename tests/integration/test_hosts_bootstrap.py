"""`hosts bootstrap` on real hosts without internet: an environment from nothing, and each way to fail."""

from __future__ import annotations

import json
import os
import re
import signal
import site
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import Cluster, until
from tests.lab.hosts import Lab
from tests.wheel_kit import make_wheel

pytestmark = pytest.mark.hosts

SCRIPT = "import alpha, sys\nprint('made of', alpha.beta.version, 'in', sys.prefix)\n"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """What the controller's pip finds: alpha, which needs beta, and a package that lends the tests' torch."""
    folder = tmp_path / "index"
    make_wheel(
        folder,
        "alpha",
        "1.0",
        needs=["beta>=1", 'gamma; python_version < "3.4"'],
        files={"alpha.py": "import beta, sys\ndef main(): print(sys.prefix)\n"},
        scripts={"alpha-says": "alpha:main"},
    )
    make_wheel(folder, "beta", "1.1")
    make_wheel(folder, "beta", "1.2")
    lent = "\n".join(site.getsitepackages()) + "\n"
    make_wheel(folder, "lent-torch", "1", files={"lent_torch.pth": lent})
    return folder


@pytest.fixture
def cluster(tmp_path: Path, lab: Lab, index: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    made = Cluster(folder=tmp_path / "c", lab=lab)
    asks(made, "alpha")
    return made


def asks(cluster: Cluster, *packages: str, **env: Any) -> None:
    """A job of these packages."""
    cluster.write_script(
        SCRIPT,
        env={"requirements": list(packages), **env},
        train={"launcher": "direct", "backend": "gloo"},
    )


def bootstrapped(cluster: Cluster, *argv: str) -> dict[str, Any]:
    return dict(cluster.json("hosts", "bootstrap", *argv)["hosts"])


def environments(cluster: Cluster, name: str = "a") -> list[str]:
    """What lies in a host's env folder, the links apart."""
    return sorted(path.name for path in (cluster.workdir(name) / "env").iterdir() if path.name != "by")


@pytest.mark.timeout(600)  # a dozen commands one after the other, on a machine that others may use
def test_from_nothing_to_a_run_in_its_environment(cluster: Cluster, lab: Lab) -> None:
    """Missing: refused with what to do. Made: once, host to host; then found, used, equal, and pruned."""
    asks(cluster, "alpha", "lent-torch")
    refused = cluster.run("train", "-d", expect=10).stderr
    assert "llmctl hosts bootstrap --limit a" in refused

    planned = cluster.json("hosts", "bootstrap", "--dry-run", "--fan-out")["hosts"]
    assert planned["a"]["packages"] == ["alpha==1.0", "beta==1.2", "lent-torch==1"]
    assert not (cluster.workdir("a") / "env").exists()

    made = bootstrapped(cluster, "--fan-out")
    env = made["a"]["env"]
    assert planned["a"]["env"] == env == made["b"]["env"]
    assert [made[name]["changed"] for name in "ab"] == [True, True]
    assert made["a"]["source"] is None
    assert made["b"]["source"] == "a"
    assert made["b"]["sent"] == made["a"]["sent"] > 0

    again = bootstrapped(cluster)
    assert [(again[name]["changed"], again[name]["env"]) for name in "ab"] == [(False, env)] * 2
    says = lab.on_host("node0", [made["a"]["python"].replace("python", "alpha-says")], capture_output=True)
    assert says.stdout.decode().strip().endswith(f"/env/{env}")

    run = cluster.start()
    assert cluster.until_state(run, "succeeded", "failed") == "succeeded"
    assert f"made of 1.2 in /root/{cluster.workname}/env/{env}" in cluster.run("logs", run).stdout
    alike = cluster.run("train", "--dry-run").stderr
    assert re.search(rf"parity .* env \d+ packages, {env[:12]}", alike)

    ready = cluster.workdir("a") / "env" / env / "ready.json"
    os.utime(ready, (0, 0))
    cluster.run("hosts", "clean", "--older-than", "1h", "--limit", "a")
    assert ready.exists(), "a young run was started with it"
    until(lambda: time.time() - _newest(cluster.run_dir("a", run)) > 1.0, what="the run is a second old")
    cluster.run("hosts", "clean", "--older-than", "1s", "--runs", "--limit", "a")
    assert not ready.exists()
    assert "llmctl hosts bootstrap --limit a" in cluster.run("train", "-d", expect=10).stderr


def _newest(folder: Path) -> float:
    return max(path.lstat().st_mtime for path in [folder, *folder.rglob("*")])


def test_an_offline_host_says_what_helps(cluster: Cluster) -> None:
    """A host that reaches no index names the option that needs none, and keeps no half environment."""
    told = cluster.run("hosts", "bootstrap", "--limit", "a", expect=20).stderr
    assert "alpha==1.0" in told
    assert "--wheelhouse" in told
    assert [name for name in environments(cluster) if not name.startswith(".lock")] == []


def test_a_user_with_a_read_only_home_and_no_ensurepip(cluster: Cluster, lab: Lab) -> None:
    """The default workdir is refused by name; below another one all works without root, pip or home."""
    lab.on_host("node1", ["install", "-d", "-o", "trainer", f"/srv/{cluster.workname}"], check=True)
    asked = [sys.executable, "-c", "import ensurepip, os; print(os.path.dirname(ensurepip.__file__))"]
    ensurepip = lab.on_host("node1", asked, check=True, capture_output=True, text=True).stdout.strip()
    home = ("/home/trainer", "--bind", "-o", "ro", "/home/trainer")
    with mounted(lab, *home), mounted(lab, ensurepip, "-t", "tmpfs", "tmpfs"):
        cluster.write_hosts(b={"user": "trainer"})
        told = cluster.run("hosts", "bootstrap", "--wheelhouse", "--limit", "b", expect=20).stderr
        assert "set `workdir:` for b" in told
        cluster.write_hosts(b={"user": "trainer", "workdir": f"/srv/{cluster.workname}/w"})
        made = bootstrapped(cluster, "--wheelhouse", "--limit", "b")["b"]
    assert made["changed"]
    owner = lab.path("node1", made["python"]).parent.parent.stat().st_uid
    assert owner == 2000


def test_a_full_disk_leaves_nothing_half_made(cluster: Cluster, lab: Lab, index: Path) -> None:
    """Known sizes are refused before anything is sent; a disk that fills up while pip unpacks is told."""
    zeros = "\0" * (24 << 20)
    make_wheel(index, "swells", "1", files={"swells.py": "", "swells.bin": zeros}, compress=True)
    make_wheel(index, "heavy", "1", files={"heavy.py": "", "heavy.bin": zeros})
    with mounted(lab, f"/srv/{cluster.workname}", "-t", "tmpfs", "-o", "size=12m", "tmpfs"):
        cluster.write_hosts(b={"workdir": f"/srv/{cluster.workname}/w"})
        asks(cluster, "heavy")
        told = cluster.run("hosts", "bootstrap", "--wheelhouse", "--limit", "b", expect=20).stderr
        assert re.search(r"takes about \d+ MB, \d+ MB are free", told)
        asks(cluster, "swells")
        told = cluster.run("hosts", "bootstrap", "--wheelhouse", "--limit", "b", expect=20).stderr
        assert "No space left" in told
        assert "hosts clean" in told
        left = lab.path("node1", f"/srv/{cluster.workname}/w/env")
        assert [path.name for path in left.iterdir() if not path.name.startswith((".lock", "by"))] == []


def test_without_a_fit_python_and_without_uv_it_is_one_line(cluster: Cluster) -> None:
    """No interpreter fits and uv is nowhere to be had: what is missing and what to do, in two lines."""
    asks(cluster, "alpha", python="3.5")
    cluster.write_hosts(a={"python": "/nowhere/python3"})
    told = cluster.run("hosts", "bootstrap", "--limit", "a", expect=20).stderr
    assert "no fit Python, and uv that would install one can't be had" in told
    assert "install Python 3.5 there, and set `python:` for a" in told
    assert told.count("\n") <= 5


def test_where_python3_does_not_start_another_one_serves(cluster: Cluster, lab: Lab) -> None:
    """Another Python that is there makes the environment, and runs llmctl's own agent from then on."""
    cluster.write_hosts(a={"python": "python3"})
    broken = lab.path("node0", "/usr/local/bin/python3")
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    try:
        made = bootstrapped(cluster, "--wheelhouse", "--limit", "a")["a"]
        lab.on_host("node0", [made["python"], "-c", "import alpha"], check=True)
        cluster.run("hosts", "clean", "--dry-run", "--limit", "a")
    finally:
        broken.unlink()
    assert made["changed"]


def test_killed_in_the_middle_then_run_again(cluster: Cluster, lab: Lab, index: Path) -> None:
    """The maker on the host dies by SIGKILL while pip works: the next bootstrap makes it whole."""
    many = {f"many_{n}.py": f"x = {n}\n" for n in range(1500)}
    make_wheel(index, "many", "1", files={"many.py": "", **many})
    asks(cluster, "many")
    running = cluster.popen("hosts", "bootstrap", "--wheelhouse", "--limit", "a")
    try:
        new = cluster.workdir("a") / "env"
        until(lambda: list(new.glob(".new-*/requirements.lock")), what="pip was started")
        killed = kill_makers(cluster)
        _, told = running.communicate(timeout=120)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == (20 if killed else 0), told
    assert "SIGKILL" in told or not killed
    made = bootstrapped(cluster, "--wheelhouse", "--limit", "a")["a"]
    assert made["changed"] == bool(killed)
    assert [name for name in environments(cluster) if not name.startswith(".lock")] == [made["env"]]
    lab.on_host("node0", [made["python"], "-c", "import many_0, many_1499"], check=True)


def kill_makers(cluster: Cluster) -> int:
    """SIGKILL for the agent of this test's workdir that makes an environment; how many there were."""
    killed = 0
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdigit() else []
        except OSError:
            continue
        ours = b"environment" in words and any(cluster.workname.encode() in word for word in words)
        if ours and b"python" in words[0]:
            os.kill(int(folder.name), signal.SIGKILL)
            killed += 1
    return killed


def test_two_at_once_make_it_once(cluster: Cluster) -> None:
    """Two bootstraps of the same at the same time both succeed, and one of them made it."""
    both = [
        cluster.popen("hosts", "bootstrap", "--wheelhouse", "--limit", "a", "-o", "json") for _ in range(2)
    ]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    hosts = [json.loads(out)["hosts"]["a"] for out, _ in told]
    assert sorted(host["changed"] for host in hosts) == [False, True]
    assert [name for name in environments(cluster) if not name.startswith(".lock")] == [hosts[0]["env"]]


def test_hosts_that_do_not_reach_each_other_are_served_from_here(cluster: Cluster, lab: Lab) -> None:
    """Without a way between the hosts, --fan-out still gets every host its environment."""
    lab.partition("node1", between="peers")
    made = bootstrapped(cluster, "--fan-out")
    assert [made[name]["changed"] for name in "ab"] == [True, True]
    assert made["b"]["source"] is None


@contextmanager
def mounted(lab: Lab, target: str, *options: str) -> Iterator[None]:
    """A mount on node1 for a while."""
    lab.on_host("node1", ["mkdir", "-p", target], check=True)
    lab.on_host("node1", ["mount", *options, target], check=True)
    try:
        if "ro" in options:
            lab.on_host("node1", ["mount", "-o", "remount,bind,ro", target], check=True)
        yield
    finally:
        lab.on_host("node1", ["umount", "-l", target], check=True)
