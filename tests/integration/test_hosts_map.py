"""`hosts map` on real hosts: two racks, two networks, a jump host, a peer's firewall; who goes by the map."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration import scripts
from tests.integration.cluster import Cluster
from tests.lab.hosts import Lab, try_up

pytestmark = pytest.mark.hosts

RACKS = ("node0", "node2"), ("node1", "node3")
"""a and c, b and d."""

WHO = """
import os
told = [os.environ[name] for name in ("RANK", "LLMCTL_HOST", "GLOO_SOCKET_IFNAME", "MASTER_ADDR")]
print("rank {} on {} over {} to {}".format(*told), flush=True)
"""
DEBIAN_NAMES = "127.0.0.1 localhost\n127.0.1.1 {name}\n"


@pytest.fixture(scope="module")
def pool() -> Iterator[Lab]:
    """Four hosts of this file's own: what is done to their wires would mislead any other test."""
    with try_up(4) as started:
        if isinstance(started, str):
            pytest.skip(f"no SSH hosts: {started}")
        yield started


def four(folder: Path, lab: Lab, **keys: Any) -> Cluster:
    """A cluster of a, b, c, d; `keys` are for all of them."""
    cluster = Cluster(folder=folder, lab=lab)
    hosts = [
        {
            "name": name,
            "addr": addr,
            "workdir": f"~/{cluster.workname}",
            "python": sys.executable,
            "slots": 1,
            **keys,
        }
        for name, addr in zip("abcd", lab.names, strict=True)
    ]
    (folder / "hosts.yaml").write_text(yaml.safe_dump({"version": 1, "pools": {"main": {"hosts": hosts}}}))
    return cluster


@contextmanager
def slow_between_racks(lab: Lab) -> Iterator[None]:
    """b and d hang on a switch of their own, behind an uplink of 40 Mbit/s."""
    lab._ctl("ip", "link", "add", "br2", "type", "bridge")
    lab._ctl("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up2")
    try:
        for end, bridge in (("up0", "br0"), ("up2", "br2")):
            lab._ctl("ip", "link", "set", bridge, "up")
            lab._ctl("ip", "link", "set", end, "master", bridge, "up")
            lab._ctl(*f"tc qdisc add dev {end} root tbf rate 40mbit burst 64kb latency 50ms".split())
        for name in RACKS[1]:
            lab._ctl("ip", "link", "set", f"v-{name}", "master", "br2")
        yield
    finally:
        for name in RACKS[1]:
            lab._ctl("ip", "link", "set", f"v-{name}", "master", "br0")
        lab._ctl("ip", "link", "del", "up0")
        lab._ctl("ip", "link", "del", "br2")


@contextmanager
def second_network(lab: Lab, rate: str) -> Iterator[None]:
    """eth1 on every host, all in 10.78.0.0/24, each wire with `rate` towards its host."""
    lab._ctl("ip", "link", "add", "br1", "type", "bridge")
    lab._ctl("ip", "link", "set", "br1", "up")
    try:
        for number, name in enumerate(lab.names):
            end = f"w-{name}"
            lab._ctl(
                "ip", "link", "add", end, "type", "veth", "peer", "name", "eth1", "netns", str(lab.pid(name))
            )
            lab._ctl("ip", "link", "set", end, "master", "br1", "up")
            lab._ctl(*f"tc qdisc add dev {end} root tbf rate {rate} burst 64kb latency 50ms".split())
            lab.on_host(name, ["ip", "addr", "add", f"10.78.0.{11 + number}/24", "dev", "eth1"], check=True)
            lab.on_host(name, ["ip", "link", "set", "eth1", "up"], check=True)
        yield
    finally:
        for name in lab.names:
            lab._ctl("ip", "link", "del", f"w-{name}", check=False)
        lab._ctl("ip", "link", "del", "br1")


@contextmanager
def named_as_debian_does(lab: Lab) -> Iterator[None]:
    """Each host's own name is 127.0.1.1 there."""
    before = {name: lab.path(name, "/etc/hosts").read_text() for name in lab.names}
    for name in lab.names:
        lab.path(name, "/etc/hosts").write_text(DEBIAN_NAMES.format(name=name))
    try:
        yield
    finally:
        for name, text in before.items():
            lab.path(name, "/etc/hosts").write_text(text)


@contextmanager
def packet_filter(lab: Lab, name: str, rule: str) -> Iterator[None]:
    """A host's own firewall, with one rule."""
    text = f"table inet own {{ chain input {{ type filter hook input priority 0; {rule}; }}\n}}\n"
    lab.on_host(name, ["nft", "-f", "-"], input=text, text=True, check=True)
    try:
        yield
    finally:
        lab.on_host(name, ["nft", "delete", "table", "inet", "own"], check=True)


def measured(cluster: Cluster, *argv: str, expect: int = 0) -> dict[str, Any]:
    return cluster.json("hosts", "map", *argv, expect=expect)


def test_two_racks_and_two_networks_are_seen_and_gone_by(tmp_path: Path, pool: Lab) -> None:
    """Racks stay together, the cut lies between them, the faster network is taken; train goes by it."""
    cluster = four(tmp_path, pool)
    with slow_between_racks(pool), second_network(pool, "2mbit"), named_as_debian_does(pool):
        found = measured(cluster)
        choice = found["choice"]
        assert {frozenset(choice["order"][:2]), frozenset(choice["order"][2:])} == {
            frozenset("ac"),
            frozenset("bd"),
        }
        assert set(choice["cut"]) == set(choice["order"][1:3])
        assert set(choice["interfaces"].values()) == {"eth0"}
        assert {way["a"]["interface"] for link in found["links"] for way in link["ways"]} == {"eth0", "eth1"}
        assert len(found["links"]) == 6
        assert all(way["works"] for link in found["links"] for way in link["ways"])
        shown = cluster.run("hosts", "map", "--max-age", "1h").stdout
        assert "a pipeline stage should end here" in shown
        assert "(eth1 " in shown  # what the other network gives
        cluster.write_script(WHO, train={"launcher": "direct"})
        plan = cluster.json("train", "--dry-run")["plan"]
        assert [node["host"] for node in plan["nodes"]] == choice["order"]
        assert plan["master_addr"] == choice["addresses"][choice["master"]]
        assert {node["launch"]["interface"] for node in plan["nodes"]} == {"eth0"}
        assert "hosts.yaml: a, b, c, d" in plan["network_why"]
        plain = cluster.json("train", "--dry-run", "--map-max-age", "0s")["plan"]
        assert [node["host"] for node in plain["nodes"]] == list("abcd")
        logs = cluster.run("train").stderr
        for rank, host in enumerate(choice["order"]):
            assert f"rank {rank} on {host} over eth0 to {choice['addresses'][choice['master']]}" in logs
        cluster.write_job(data={"uri": "/srv/none"})
        fleet = cluster.json("plan", "--vocabulary", "1000")
        assert any("map of" in note for note in fleet["assumptions"])


def test_a_peers_firewall_is_named_with_what_to_open(tmp_path: Path, lab: Lab) -> None:
    """a can't connect to b, b can to a: told of b, with the ports, and that SSH is let through."""
    cluster = Cluster(folder=tmp_path, lab=lab)
    rule = f"ip saddr {lab.ips['node0']} tcp dport != 22 ct state new drop"
    with packet_filter(lab, "node1", rule):
        refused = cluster.run("hosts", "map", expect=10)
        assert "b accepts no connection from a on ports" in refused.stderr
        assert "though its SSH port answers" in refused.stderr
        assert "b: let TCP ports" in refused.stderr
        assert "a accepts no connection" not in refused.stderr
        cluster.write_script(scripts.SLEEPER)
        plan = cluster.json("train", "--dry-run")["plan"]
        assert any("the map of" in warning and "is not used" in warning for warning in plan["warnings"])


def test_hosts_behind_a_jump_host_measure_each_other(tmp_path: Path, lab: Lab) -> None:
    """b can be reached through a only; the link between them is measured from their own addresses."""
    cluster = Cluster(folder=tmp_path, lab=lab)
    cluster.write_hosts(b={"proxy_jump": "a"})
    lab.partition("node1", between="ctl")
    found = measured(cluster, "--seconds", "0.1")
    ((way,),) = [link["ways"] for link in found["links"]]
    assert {way["a"]["addr"], way["b"]["addr"]} == set(lab.ips.values())
    assert way["works"]


def test_two_names_of_one_machine_and_a_dead_host_spoil_nothing(tmp_path: Path, lab: Lab) -> None:
    """Twins are measured over their common address; a host that is off is told (exit 11), the rest stands."""
    cluster = Cluster(folder=tmp_path, lab=lab)
    document = yaml.safe_load((tmp_path / "hosts.yaml").read_text())
    hosts = document["pools"]["main"]["hosts"]
    hosts.append({**hosts[0], "name": "twin", "workdir": hosts[0]["workdir"] + "-twin"})
    hosts.append({**hosts[0], "name": "off", "addr": "10.77.0.250"})
    (tmp_path / "hosts.yaml").write_text(yaml.safe_dump(document))
    done = cluster.run("hosts", "map", "--seconds", "0.1", "-o", "json", expect=None)
    assert done.returncode in (11, 12), done.stderr
    found = yaml.safe_load(done.stdout)
    assert found["hosts"] == ["a", "b", "twin"]
    assert len(found["links"]) == 3
    assert all(link["ways"] and link["ways"][0]["works"] for link in found["links"])
    left = subprocess.run(["pgrep", "-f", cluster.workname], capture_output=True, text=True, check=False)
    assert not left.stdout, "a measuring program was left"
