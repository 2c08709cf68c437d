"""The lab itself: its hosts are apart from this machine and from each other, and its faults are real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.hosts import Lab, has_banner

pytestmark = pytest.mark.hosts


def ssh(lab: Lab, host: str, command: str) -> subprocess.CompletedProcess[str]:
    argv = ["ssh", "-F", lab.ssh_config, "-o", "ConnectTimeout=2", host, command]
    return lab.client(argv, capture_output=True, text=True, timeout=20)


def test_hosts_have_own_names_files_and_processes(lab: Lab) -> None:
    """What one host writes is seen by neither the other host nor this machine."""
    assert ssh(lab, "node0", "hostname; echo mine > /tmp/mine").stdout == "node0\n"
    assert ssh(lab, "node1", "ls /tmp/mine").returncode != 0
    assert not Path("/tmp/mine").exists()
    assert lab.path("node0", "/tmp/mine").read_text() == "mine\n"


def test_hosts_have_this_interpreter(lab: Lab) -> None:
    """A host can run the tests' own python, with its packages, at the same path."""
    done = ssh(lab, "node0", f"{sys.executable} -c 'import paramiko; print(paramiko.__name__)'")
    assert done.stdout == "paramiko\n", done.stderr


def test_partition_and_heal(in_lab: Lab) -> None:
    """A partitioned host is silent, a healed one answers again."""
    in_lab.partition("node1")
    assert not has_banner(in_lab.ips["node1"])
    assert has_banner(in_lab.ips["node0"])
    in_lab.heal("node1")
    assert has_banner(in_lab.ips["node1"])


def test_restore_boots_a_dead_host_with_its_disk(in_lab: Lab) -> None:
    """After a power cut and `restore` the host is back with its files."""
    ssh(in_lab, "node1", "echo kept > /root/kept")
    in_lab.poweroff("node1")
    assert not has_banner(in_lab.ips["node1"])
    in_lab.restore()
    assert ssh(in_lab, "node1", "cat /root/kept").stdout == "kept\n"


def test_freeze_keeps_tcp_but_not_answers(in_lab: Lab) -> None:
    """A frozen host accepts TCP connections but no sshd answers; thawed, it does."""
    in_lab.freeze("node1")
    assert not has_banner(in_lab.ips["node1"])
    in_lab.thaw("node1")
    assert has_banner(in_lab.ips["node1"])
