"""`hosts check` and `hosts facts` on real hosts, healthy and in each kind of trouble."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration import scripts
from tests.integration.cluster import Cluster
from tests.lab.hosts import Lab
from tests.lab.state import mounted, rewritten

pytestmark = pytest.mark.hosts

FAKE_DATE = "#!/bin/sh\nexec /usr/bin/date -d '{shift}' \"$@\"\n"
FAKE_SMI = """#!/bin/sh
case $1 in
  --query-gpu=*) {query} ;;
  --query-compute-apps=*) cat /srv/apps 2>/dev/null ;;
  *) echo '| NVIDIA-SMI 570.86.15   Driver Version: 570.86.15   CUDA Version: 12.8 |' ;;
esac
"""
GPU = (
    "0, NVIDIA H100 80GB HBM3, 81559, 570.86.15, GPU-1, 00000000:18:00.0, 60000, 0, No, Disabled, Default, 30"
)


@pytest.fixture
def cluster(tmp_path: Path, lab: Lab) -> Cluster:
    return Cluster(folder=tmp_path / "c", lab=lab)


@contextmanager
def tool(lab: Lab, name: str, text: str) -> Iterator[None]:
    """A program on node1 in front of the real ones: what a machine of another kind would have."""
    path = lab.path("node1", f"/usr/local/bin/{name}")
    path.write_text(text)
    path.chmod(0o755)
    try:
        yield
    finally:
        path.unlink()


def checked(cluster: Cluster, *argv: str, expect: int | None = 0) -> dict[str, Any]:
    return dict(cluster.json("hosts", "check", *argv, expect=expect)["hosts"])


def abouts(host: dict[str, Any]) -> dict[str, str]:
    """about -> level of every verdict of one host."""
    return {verdict["about"]: verdict["level"] for verdict in host["verdicts"]}


def test_healthy_hosts_are_fit_and_known_in_depth(cluster: Cluster, lab: Lab) -> None:
    """One look gives the facts of each host as they are, the clock's difference within its own error."""
    found = checked(cluster)
    for name, node in zip("ab", lab.names, strict=True):
        assert found[name]["problems"] == []
        facts = found[name]["facts"]
        more = facts["more"]
        assert more["hostname"] == node
        assert more["resolves_to"] == [lab.ips[node]]
        assert more["machine_id"] == lab.path(node, "/etc/machine-id").read_text().strip()
        assert more["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert abs(more["skew"]["ahead"]) <= more["skew"]["error"] + 0.01
        (eth0,) = [link for link in more["interfaces"] if link["name"] == "eth0"]
        assert f"{lab.ips[node]}/24" in eth0["addresses"]
        assert more["disks"][0]["path"] == facts["workdir"]
        assert more["limits"]["nofile"] > 0
        assert "torch 2." in " ".join(facts["python"]["packages"])


def test_the_text_form_has_a_row_per_host_and_facts_a_block(cluster: Cluster) -> None:
    """What people read: no JSON, every host named, its interpreter and address in sight."""
    table = cluster.run("hosts", "check").stdout
    assert [line.split()[0] for line in table.splitlines() if line.startswith(("a ", "b "))] == ["a", "b"]
    shown = cluster.run("hosts", "facts", "--limit", "b").stdout
    assert shown.startswith("b\n")
    assert "interface  eth0 · 10.77.0.12/24" in shown
    assert " torch 2." in shown


@pytest.mark.parametrize(("shift", "level", "code"), [("+10 sec", "warn", 0), ("-90 sec", "unfit", 10)])
def test_a_wrong_clock_is_told_by_how_much(
    cluster: Cluster, lab: Lab, shift: str, level: str, code: int
) -> None:
    """10 s off is a warning, 90 s unfit. (`date` is faked: there is no namespace for the wall clock.)"""
    with tool(lab, "date", FAKE_DATE.format(shift=shift)):
        found = checked(cluster, expect=code)
    assert abouts(found["b"])["clock"] == level
    assert "clock" not in abouts(found["a"])
    assert round(found["b"]["facts"]["more"]["skew"]["ahead"]) == int(shift.removesuffix(" sec"))


def test_a_read_only_home_is_told_with_the_way_out(cluster: Cluster, lab: Lab) -> None:
    """Exit 10 with the system's own words, and `workdir:`; with that set, the home is a warning only."""
    home = "/home/trainer"
    cluster.write_hosts(b={"user": "trainer", "python": "/usr/bin/python3"})
    with mounted(lab, "node1", home, "--bind", home):
        lab.on_host("node1", ["mount", "-o", "remount,bind,ro", home], check=True)
        done = cluster.run("hosts", "check", expect=10)
        assert "Read-only file system" in done.stderr
        assert "set `workdir:` for b in hosts.yaml" in done.stderr
        cluster.write_hosts(b={"user": "trainer", "workdir": f"/tmp/{cluster.workname}"})
        for node in lab.names:
            lab.on_host(node, ["chmod", "711", "/root"], check=True)
        found = checked(cluster)
        assert found["b"]["problems"] == []
        assert abouts(found["b"])["home"] == "warn"


def test_no_space_and_noexec_are_told(cluster: Cluster, lab: Lab) -> None:
    """A workdir of 4 MB is unfit; one that may not execute is worth a warning."""
    with mounted(lab, "node1", "/srv/small", "-t", "tmpfs", "-o", "size=4m,noexec", "tmpfs"):
        cluster.write_hosts(b={"workdir": "/srv/small/w"})
        found = checked(cluster, expect=10)
    assert "MB free in /srv/small/w" in found["b"]["problems"][0]
    assert abouts(found["b"])["noexec"] == "warn"


def test_an_ordinary_user_sees_as_much_as_it_may(cluster: Cluster, lab: Lab) -> None:
    """Without root the packet filter is unknown, and everything else is not."""
    for node in lab.names:
        lab.on_host(node, ["chmod", "711", "/root"], check=True)
    cluster.write_hosts(b={"user": "trainer"})
    more = checked(cluster)["b"]["facts"]["more"]
    assert more["user"] == "trainer"
    assert more["firewall"]["drops_input"] is None
    assert more["machine_id"]


@pytest.mark.parametrize(("line", "words"), [("127.0.1.1 node1", "127.0.1.1"), ("", "does not resolve")])
def test_debians_name_for_itself_is_a_warning(cluster: Cluster, lab: Lab, line: str, words: str) -> None:
    """torchrun by hand hangs on it; llmctl does not, so it is no more than a warning."""
    with rewritten(lab, "node1", "/etc/hosts", f"127.0.0.1 localhost\n{line}\n"):
        found = checked(cluster)
    (told,) = [v["message"] for v in found["b"]["verdicts"] if v["about"] == "name"]
    assert words in told


def test_a_second_interface_is_seen_and_a_smaller_mtu_named(cluster: Cluster, lab: Lab) -> None:
    """Every interface is a fact; the MTU that counts is that of the one by which the host is reached."""
    add = "ip link add eth9 type veth peer name eth9p && ip addr add 10.99.0.2/24 dev eth9"
    lab.on_host("node1", ["sh", "-c", add + " && ip link set eth0 mtu 1400"], check=True)
    try:
        found = checked(cluster)
    finally:
        undo = "ip link del eth9; ip link set eth0 mtu 1500"
        lab.on_host("node1", ["sh", "-c", undo], check=True)
    links = {link["name"]: link for link in found["b"]["facts"]["more"]["interfaces"]}
    assert "10.99.0.2/24" in links["eth9"]["addresses"]
    told = [v["message"] for host in found.values() for v in host["verdicts"] if v["about"] == "mtu"]
    assert len(told) == 1
    assert "MTU 1400" in told[0] or "MTU 1500" in told[0]


def test_a_dead_host_does_not_hide_the_others(cluster: Cluster, lab: Lab) -> None:
    """A frozen host costs its own timeout; the other's facts are there, and the exit code is 11."""
    lab.freeze("node1")
    done = cluster.run(
        "hosts", "check", "-o", "json", expect=11, env={"LLMCTL_CONNECT_TIMEOUT_S": "2"}, timeout=30
    )
    found = json.loads(done.stdout)["hosts"]
    assert found["a"]["problems"] == []
    assert found["b"]["stage"] == "connect"


def test_a_slow_host_is_waited_for_and_its_clock_is_not_blamed(cluster: Cluster, lab: Lab) -> None:
    """A fifth of a core: the facts come later, and a long round trip is no clock difference."""
    group = lab._cgroup("node1")
    group._write("cpu.max" if group._v2 else "cpu.cfs_quota_us", "20000")
    try:
        found = checked(cluster)
    finally:
        group._write("cpu.max" if group._v2 else "cpu.cfs_quota_us", "max" if group._v2 else "-1")
    assert found["b"]["problems"] == []
    assert "clock" not in abouts(found["b"])
    assert found["b"]["facts"]["more"]["skew"]["error"] >= 0


def test_gpus_and_those_who_hold_them_are_found(cluster: Cluster, lab: Lab) -> None:
    """A GPU that someone else fills is unfit for a job that would use it; `-f` of a CPU job minds not."""
    lab.path("node1", "/srv/gpu").write_text(GPU + "\n")
    lab.path("node1", "/srv/apps").write_text("GPU-1, 1, 59000, python\n")
    with tool(lab, "nvidia-smi", FAKE_SMI.format(query="cat /srv/gpu")):
        found = checked(cluster, expect=10)
        assert found["b"]["facts"]["gpus"][0]["model"] == "NVIDIA H100 80GB HBM3"
        assert found["b"]["facts"]["more"]["cuda_driver"] == "12.8"
        assert abouts(found["b"]) | {"foreign": "unfit", "torch": "unfit"} == abouts(found["b"])
        (told,) = [v for v in found["b"]["verdicts"] if v["about"] == "foreign"]
        assert "of root (pid 1)" in told["message"]
        cluster.write_script(scripts.SLEEPER, train={"backend": "gloo"})
        assert checked(cluster, "-f", "job.yaml")["b"]["problems"] == []


def test_a_driver_that_is_broken_or_hangs_is_a_fact(cluster: Cluster, lab: Lab) -> None:
    """Its last words are shown; one that never answers costs seconds, not the host's other facts."""
    words = "Failed to initialize NVML: Driver/library version mismatch"
    with tool(lab, "nvidia-smi", FAKE_SMI.format(query=f"echo '{words}'; exit 18")):
        found = checked(cluster, expect=10)
    assert words in found["b"]["problems"][0]
    (told,) = [v for v in found["b"]["verdicts"] if v["about"] == "driver"]
    assert "reboot b" in told["hint"]
    with tool(lab, "nvidia-smi", FAKE_SMI.format(query="exec sleep 100")):
        found = checked(cluster, expect=10)
    assert "did not answer within 10 s" in found["b"]["problems"][0]
    assert found["b"]["facts"]["python"]["torch"]


def test_a_job_is_judged_by_what_it_needs(cluster: Cluster, lab: Lab) -> None:
    """With `-f`: data that is not there, GPUs that it asks for, more ranks than cores."""
    cluster.write_job(data={"uri": "/srv/none"}, train={"backend": "nccl"})
    found = checked(cluster, "-f", "job.yaml", expect=10)
    told = " | ".join(found["b"]["problems"])
    assert "no data: /srv/none/manifest.json" in told
    assert "wants nccl and no GPU was found" in told


def test_versions_that_differ_are_told_by_check_and_refused_by_train(cluster: Cluster, lab: Lab) -> None:
    """The parity gate: exit 10 names the package; --allow-mismatch env goes on and says so in the plan."""
    cluster.write_script(scripts.SLEEPER)
    python = lab.path("node1", "/srv/python")
    python.write_text(f'#!/bin/sh\nPYTHONPATH=/srv/extra exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    lab.path("node1", "/srv/extra/oddity-1.2.3.dist-info").mkdir(parents=True, exist_ok=True)
    cluster.write_hosts(b={"python": "/srv/python"})
    found = checked(cluster)
    told = [v for host in found.values() for v in host["verdicts"] if v["about"] == "env"]
    assert [(v["level"], "oddity" in v["message"]) for v in told] == [("warn", True)]
    refused = cluster.run("train", "--dry-run", expect=10).stderr
    assert "parity: env differs" in refused
    assert "--allow-mismatch env" in refused
    cluster.run("train", "--dry-run", "--allow-mismatch", "torch", expect=10)
    cluster.run("train", "--dry-run", "--allow-mismatch", "nonsense", expect=2)
    plan = cluster.json("train", "--dry-run", "--allow-mismatch", "torch,env")["plan"]
    assert any("allowed by --allow-mismatch" in warning for warning in plan["warnings"])


def test_two_hosts_with_one_workdir_are_refused(cluster: Cluster, lab: Lab) -> None:
    """Two names for one folder of one machine: run directories would overwrite each other."""
    cluster.write_script(scripts.SLEEPER)
    extra = f"{lab.ips['node0'].rsplit('.', 1)[0]}.99"
    lab.on_host("node0", ["ip", "addr", "add", f"{extra}/24", "dev", "eth0"], check=True)
    try:
        cluster.write_hosts(b={"addr": extra})
        known = lab.known_hosts.read_text()
        key = next(line.split(" ", 1)[1] for line in known.splitlines() if line.startswith("node0"))
        lab.known_hosts.write_text(f"{known}{extra} {key}\n")
        told = cluster.run("train", expect=10).stderr
    finally:
        lab.on_host("node0", ["ip", "addr", "del", f"{extra}/24", "dev", "eth0"], check=True)
        lab._write_client_files()
    assert "is the same folder as on a" in told
    assert "same machine as a" in told
