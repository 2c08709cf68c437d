"""A host is its key and its machine: moves and reboots are recognised, a swapped machine is refused."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import scripts
from tests.integration.cluster import Cluster
from tests.lab.hosts import Lab
from tests.lab.state import rewritten

pytestmark = pytest.mark.hosts


@pytest.fixture
def cluster(tmp_path: Path, lab: Lab) -> Cluster:
    return Cluster(folder=tmp_path / "c", lab=lab)


@pytest.fixture
def other_machine_id(lab: Lab) -> Iterator[str]:
    """node1 is another machine for a while, behind the same address and host key (a cloned disk)."""
    other = uuid.uuid4().hex
    with rewritten(lab, "node1", "/etc/machine-id", other + "\n"):
        yield other


def pinned(cluster: Cluster) -> dict[str, dict[str, str]]:
    book = json.loads((cluster.home / ".local/state/llmctl/hosts.json").read_text())
    (scope,) = book["hosts"].values()
    return {name: note["pin"] for name, note in scope.items()}


def test_trust_pins_the_machine_behind_the_key(cluster: Cluster, lab: Lab) -> None:
    """Key, address, machine-id and boot-id are remembered at the first trust, for the owner only."""
    known = lab.known_hosts.read_text()
    lab.known_hosts.write_text("".join(k for k in known.splitlines(True) if not k.startswith("node1")))
    try:
        told = cluster.run("hosts", "check", expect=12).stderr
        found = re.search(r"SHA256:[A-Za-z0-9+/]{43}", told)
        assert found
        cluster.run("hosts", "trust", "b", "--fingerprint", found.group())
    finally:
        lab._write_client_files()
    pin = pinned(cluster)["b"]
    assert pin["address"] == f"{lab.ips['node1']}:22"
    assert pin["machine_id"] == lab.path("node1", "/etc/machine-id").read_text().strip()
    assert pin["boot_id"]
    assert (cluster.home / ".local/state/llmctl/hosts.json").stat().st_mode & 0o777 == 0o600


def test_a_swapped_machine_is_refused_everywhere_until_it_is_trusted(
    cluster: Cluster, lab: Lab, request: pytest.FixtureRequest
) -> None:
    """check and train: exit 12 with both ids; nothing is started; `trust --replace` is the way on."""
    cluster.write_script(scripts.SLEEPER)
    cluster.run("hosts", "check")
    known = pinned(cluster)["b"]["machine_id"]
    other = request.getfixturevalue("other_machine_id")
    for verb in (("hosts", "check"), ("train",)):
        told = cluster.run(*verb, expect=12).stderr
        assert f"its machine-id is {other}, known is {known}" in told
        assert "llmctl hosts trust b --replace" in told
    assert pinned(cluster)["b"]["machine_id"] == known, "what was refused must not be remembered"
    assert cluster.json("status", "--all")["runs"] == []
    key = re.search(r"SHA256:\S+", cluster.run("hosts", "trust", "b", expect=2).stderr)
    assert key
    cluster.run("hosts", "trust", "b", "--fingerprint", key.group(), expect=12)
    cluster.run("hosts", "trust", "b", "--fingerprint", key.group(), "--replace")
    assert pinned(cluster)["b"]["machine_id"] == other
    cluster.run("hosts", "check")


def test_a_reboot_is_noticed_once(cluster: Cluster, lab: Lab) -> None:
    """Another boot-id: told with the time of the last sight, then known."""
    cluster.run("hosts", "check")
    lab.path("node1", "/srv/boot").write_text(f"{uuid.uuid4()}\n")
    target = "/proc/sys/kernel/random/boot_id"
    lab.on_host("node1", ["mount", "--bind", "/srv/boot", target], check=True)
    try:
        first, second = cluster.json("hosts", "check"), cluster.json("hosts", "check")
    finally:
        lab.on_host("node1", ["umount", "-l", target], check=True)
    assert first["hosts"]["a"]["notes"] == []
    (note,) = first["hosts"]["b"]["notes"]
    assert re.match(r"was rebooted since \d{4}-\d\d-\d\d \d\d:\d\d", note)
    assert second["hosts"]["b"]["notes"] == []


def test_a_host_with_a_new_address_is_recognised_by_its_key(cluster: Cluster, lab: Lab) -> None:
    """No question, no exit 12: the key is the pinned one. A stranger with no memory is asked to trust."""
    cluster.run("hosts", "check")
    moved = f"{lab.ips['node1'].rsplit('.', 1)[0]}.98"
    lab.on_host("node1", ["ip", "addr", "add", f"{moved}/24", "dev", "eth0"], check=True)
    try:
        cluster.write_hosts(b={"addr": moved})
        found = cluster.json("hosts", "check")["hosts"]["b"]
        assert found["problems"] == []
        was = f"{lab.ips['node1']}:22"
        assert found["notes"] == [f"has moved to {moved}:22 (was {was}; same host key)"]
        assert cluster.json("hosts", "check")["hosts"]["b"]["notes"] == []
        (cluster.home / ".local/state/llmctl/hosts.json").unlink()
        assert "unknown" in cluster.run("hosts", "check", expect=12).stderr
    finally:
        lab.on_host("node1", ["ip", "addr", "del", f"{moved}/24", "dev", "eth0"], check=True)


def test_another_host_at_the_new_address_is_not_taken_for_it(cluster: Cluster, lab: Lab) -> None:
    """b's address now leads to node0: its key is not b's, so it is refused, not recognised."""
    cluster.run("hosts", "check")
    moved = f"{lab.ips['node0'].rsplit('.', 1)[0]}.97"
    lab.on_host("node0", ["ip", "addr", "add", f"{moved}/24", "dev", "eth0"], check=True)
    try:
        cluster.write_hosts(b={"addr": moved})
        told = cluster.run("hosts", "check", expect=12).stderr
        assert "b: connect: the host key of" in told
    finally:
        lab.on_host("node0", ["ip", "addr", "del", f"{moved}/24", "dev", "eth0"], check=True)
