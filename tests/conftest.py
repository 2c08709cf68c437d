"""Fixtures that every suite may use: the lab of real SSH hosts, a real Ceph, a real HDFS."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.lab import ceph as ceph_lab
from tests.lab import hdfs as hdfs_lab
from tests.lab.ceph import Ceph
from tests.lab.hdfs import Hdfs
from tests.lab.hosts import Lab, try_up
from tests.scheduling import scheduler

# A busy machine is no reason to fail: no test here is about time.
hypothesis.settings.register_profile("llmctl", deadline=None)
hypothesis.settings.load_profile("llmctl")

# A shell that starts the suite with `&` has it ignore Ctrl-C, and every process below would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share servers stay together."""
    return scheduler(config, log)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two SSH hosts, node0 and node1, one lab per test session. Mark such tests with `hosts`."""
    with try_up(2) as started:
        if isinstance(started, str):
            if os.environ.get("LLMCTL_REQUIRE_HOSTS") == "1":
                pytest.fail(f"SSH hosts are required here but: {started}")
            pytest.skip(f"no SSH hosts: {started}")
        yield started


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """A real Ceph with an S3 gateway, one per test session. Mark such tests with `stores`."""
    _require_store("Ceph", ceph_lab.missing())
    with Ceph.up() as started:
        yield started


@pytest.fixture(scope="session")
def cephfs(ceph: Ceph) -> Iterator[Path]:
    """The folder where a real CephFS is mounted. Mark such tests with `stores`."""
    _require_store("CephFS", ceph_lab.missing_fs())
    if not ceph_lab.has_fuse():
        pytest.skip("no CephFS: /dev/fuse can't be opened here, so nothing can be mounted")
    with ceph.mounted() as folder:
        yield folder


@pytest.fixture(scope="session")
def hdfs() -> Iterator[Hdfs]:
    """A real HDFS, one per test session. Mark such tests with `stores`."""
    _require_store("HDFS", hdfs_lab.missing())
    with Hdfs.up() as started:
        yield started


def _require_store(name: str, missing: str | None) -> None:
    if missing and os.environ.get("LLMCTL_REQUIRE_STORES") == "1":
        pytest.fail(f"{name} is required here but: {missing}")
    if missing:
        pytest.skip(f"no {name}: {missing}")


@pytest.fixture(autouse=True)
def _no_fault_outlives_its_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """A partition, a freeze or a dead host of one test is never the next one's surprise.

    Nor is a host that it left changed, which would fail another test in one order of many: that is said here.
    """
    lab: Lab | None = request.getfixturevalue("lab") if "lab" in request.fixturenames else None
    before = lab.traits() if lab else None
    yield
    if lab:
        lab.restore()
        assert lab.traits() == before, "this test left a host other than it found it"
    for name in ("ceph", "hdfs"):
        if name in request.fixturenames and "stores_fault" in request.keywords:
            request.getfixturevalue(name).restore()


@pytest.fixture
def in_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The lab, with this test's thread inside the client's network and its ssh_config in the environment."""
    monkeypatch.setenv("LLMCTL_SSH_CONFIG", str(lab.ssh_config))
    with lab.inside():
        yield lab
