"""Locks that the controller's pip makes for hosts of another Python and glibc than its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmctl.controller.config.models import EnvSection
from llmctl.controller.config.requirements import Requirements, requirements_of
from llmctl.controller.execute.locking import Locker
from llmctl.controller.plan.bootstrap import Target
from llmctl.errors import ProvisionError
from tests.wheel_kit import make_wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def wanted(*packages: str) -> Requirements:
    found = requirements_of(EnvSection(requirements=list(packages)), Path())
    assert found is not None
    return found


def target(python: str = "3.12", glibc: str = "2.28", machine: str = "x86_64", build: str = "") -> Target:
    return Target(python=python, machine=machine, glibc=glibc, build=build)


def test_conditions_are_the_targets_and_wheels_fit_its_glibc(index: Path, tmp_path: Path) -> None:
    """`python_version` and `platform_machine` mean the host's; a wheel for a newer glibc is not taken."""
    needs = ['old; python_version < "3.10"', 'arm; platform_machine == "aarch64"', "native"]
    make_wheel(index, "top", "1", needs=needs)
    make_wheel(index, "old", "1")
    make_wheel(index, "arm", "1")
    for version, tag in [("1", "manylinux_2_17"), ("2", "manylinux_2_34")]:
        for machine in ("x86_64", "aarch64"):
            make_wheel(index, "native", version, tag=f"py3-none-{tag}_{machine}")
    locker = Locker(tmp_path / "cache")

    def locked(for_: Target) -> list[str]:
        packages = locker.fetch(locker.lock(wanted("top"), for_), for_)
        assert all(
            locker_path(tmp_path, one.sha256[0], one.file).stat().st_size == one.size for one in packages
        )
        return [f"{one.name} {one.version}" for one in packages]

    assert locked(target("3.9")) == ["native 1", "old 1", "top 1"]
    assert locked(target("3.12", machine="aarch64", glibc="2.35")) == ["arm 1", "native 2", "top 1"]


def locker_path(tmp_path: Path, sha: str, file: str) -> Path:
    return tmp_path / "cache" / "wheels" / sha / file


def test_a_lock_stays_until_it_is_asked_for_anew(index: Path, tmp_path: Path) -> None:
    """What an index has later changes nothing; `upgrade` takes it."""
    make_wheel(index, "pkg", "1")
    cache = tmp_path / "cache"
    first = Locker(cache).lock(wanted("pkg"), target())
    make_wheel(index, "pkg", "2")
    assert Locker(cache).lock(wanted("pkg"), target()) == first
    assert [one.version for one in Locker(cache, upgrade=True).lock(wanted("pkg"), target())] == ["2"]


def test_what_can_not_be_had_is_said_in_pips_words(index: Path, tmp_path: Path) -> None:
    """No such package, and a torch of the usual build where another one is needed, are refused."""
    make_wheel(index, "torch", "2.0")
    locker = Locker(tmp_path / "cache")
    with pytest.raises(ProvisionError, match="No matching distribution found for missing"):
        locker.lock(wanted("missing"), target())
    with pytest.raises(ProvisionError, match=r"torch 2\.0, not its build `cpu`") as refused:
        locker.lock(wanted("torch"), target(build="cpu"))
    assert refused.value.hint is not None
    assert "torch: default" in refused.value.hint
    make_wheel(index, "torch", "2.0+cpu")
    assert [one.version for one in locker.lock(wanted("torch"), target(build="cpu"))] == ["2.0+cpu"]
