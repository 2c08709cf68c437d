"""`hosts check --deep` on real hosts: a slow one, a sick link, the job's stores and a trial checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.cluster import Cluster
from tests.lab.hosts import Lab, try_up

pytestmark = [pytest.mark.hosts, pytest.mark.torch]


PROGRAM = b"\0-m\0llmctl.worker.deepcheck"
"""Not the shells above it, whose single argument has the words too."""


@contextmanager
def crowded(lab: Lab, name: str) -> Iterator[None]:
    """Eight busy loops share the host's part of this machine, from the middle of `import torch` on.

    (Freezing it now and then, or a quota, does nothing on a busy machine, where the others get as little.)
    """
    done = threading.Event()
    loops: list[subprocess.Popen[bytes]] = []

    def watch() -> None:
        pid: Path | None = None
        while not done.wait(0.05):
            pid = pid or next((one for one in processes(lab, name) if PROGRAM in cmdline(one)), None)
            if pid is not None and threads(pid) >= 3:  # main, the reader of stdin, and numpy's
                for _ in range(8):
                    loops.append(subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]))
                    lab._cgroup(name).add(loops[-1].pid, mem_mib=None, cpus=None)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for loop in loops:
            loop.kill()
            loop.wait()


def processes(lab: Lab, name: str) -> list[Path]:
    """The host's processes in our /proc."""
    inside = Path(f"/proc/{lab.pid(name)}/ns/pid").readlink()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if (folder / "ns/pid").readlink() == inside:
                    found.append(folder)
    return found


def cmdline(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def threads(process: Path) -> int:
    try:
        return len(list((process / "task").iterdir()))
    except OSError:
        return 0


def deep(cluster: Cluster, *argv: str, expect: int = 0) -> dict[str, Any]:
    done = cluster.run("hosts", "check", "--deep", *argv, "-o", "json", expect=expect, timeout=280.0)
    return dict(json.loads(done.stdout))


def told(found: dict[str, Any], host: str, about: str) -> list[dict[str, Any]]:
    return [verdict for verdict in found["hosts"][host]["verdicts"] if verdict["about"] == about]


def test_the_slow_host_and_the_jobs_places_are_told(tmp_path: Path, lab: Lab) -> None:
    """b has other load and is named with both numbers; the job's places are tried on both."""
    cluster = Cluster(folder=tmp_path, lab=lab)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "manifest.json").write_text("{}")
    (corpus / "shard-0").write_bytes(bytes(3_000_000))
    cluster.copy_to_hosts(corpus, f"/srv/{cluster.workname}")
    store = lab.shared / cluster.workname
    store.mkdir()
    cluster.write_job(
        data={"uri": f"/srv/{cluster.workname}"}, checkpoint={"uri": f"/mnt/shared/{cluster.workname}"}
    )
    with crowded(lab, "node1"):
        found = deep(cluster, "-f", "job.yaml")
    (slow,) = told(found, "b", "compute")
    assert "cpu is slow" in slow["message"]
    assert "the median of 2 x" in slow["message"]
    assert slow["level"] == "warn"
    assert not told(found, "a", "compute")
    (pair,) = found["pairs"]
    assert pair["rate"] > 0
    for host in "ab":
        places = {one["use"]: one for one in found["hosts"][host]["deep"]["stores"]}
        assert {use: one["reply"]["error"] for use, one in places.items()} == {
            "read": "",
            "write": "",
            "trial": "",
        }
        assert places["read"]["reply"]["bytes"] == 3_000_000
        assert places["trial"]["reply"]["bytes"] == places["trial"]["wanted"] > 0
    assert list(store.iterdir()) == []


def test_a_place_that_cant_be_written_is_told_of_every_host(tmp_path: Path, lab: Lab) -> None:
    """Also where there is no torch: what does not need it is tried; exit 10 names host, place and reason."""
    cluster = Cluster(folder=tmp_path, lab=lab)
    cluster.write_hosts(a={"python": "/usr/bin/python3"}, b={"python": "/usr/bin/python3"})
    cluster.write_job(checkpoint={"uri": "/proc/none"}, data={"uri": "/srv/none"})
    found = deep(cluster, "-f", "job.yaml", expect=10)
    for host in "ab":
        messages = " | ".join(one["message"] for one in told(found, host, "store"))
        assert "can't read /srv/none" in messages
        assert "can't write to /proc/none" in messages
        assert found["hosts"][host]["deep"]["devices"] == []


def test_the_host_behind_a_bad_wire_is_named_by_pairing_again(tmp_path: Path) -> None:
    """Of c and d, whose all-reduce is slow, each gets another partner: d is slow again, c is not."""
    with try_up(4) as lab:
        if isinstance(lab, str):
            pytest.skip(f"no SSH hosts: {lab}")
        cluster = Cluster(folder=tmp_path, lab=lab)
        hosts = [
            {"name": name, "addr": addr, "python": sys.executable, "slots": 1}
            for name, addr in zip("abcd", lab.names, strict=True)
        ]
        document = {"version": 1, "pools": {"main": {"hosts": hosts}}}
        (tmp_path / "hosts.yaml").write_text(yaml.safe_dump(document))
        shape = ("tbf", "rate", "16mbit", "burst", "64kb", "latency", "50ms")
        lab._ctl("tc", "qdisc", "add", "dev", "v-node3", "root", *shape)
        found = deep(cluster)
        pairs = [{pair["a"], pair["b"]} for pair in found["pairs"]]
        assert pairs[:2] == [{"a", "b"}, {"c", "d"}]
        assert len(pairs) == 4
        (sick,) = told(found, "d", "collective")
        assert "which work with others" in sick["message"]
        assert not [one for host in "abc" for one in told(found, host, "collective")]
