"""Hosts that must be alike: what differs is named with the odd one out, and only that can be allowed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.controller.plan.parity import (
    FIELDS,
    changed_packages,
    compared,
    differences,
    parse_allowed,
    refusals,
    summary,
)
from llmctl.controller.plan.pool import pool_problems, pool_verdicts
from llmctl.controller.plan.verdicts import Level
from llmctl.controller.probe.facts import Gpu, HostFacts
from llmctl.controller.probe.machine import Disk, Interface, Machine
from llmctl.errors import ConfigError
from tests.unit.controller.builders import facts, host

BASE = ("fsspec 2026.9", "numpy 2.4.6", "torch 2.13.0")


def one(name: str, *, driver: str | None = None, **python: Any) -> HostFacts:
    gpus = (Gpu(index=0, model="H100", memory=1, driver=driver),) if driver else ()
    known = facts(name, gpus=gpus)
    assert known.python is not None
    values = {"packages": BASE, **python}
    return dataclasses.replace(known, python=dataclasses.replace(known.python, **values))


def three(**odd: Any) -> dict[str, HostFacts]:
    """a, b and c; c is the odd one."""
    return {"a": one("a"), "b": one("b"), "c": one("c", **odd)}


def test_equal_hosts_differ_in_nothing() -> None:
    """The gate can open."""
    assert differences(three()) == []


def test_the_odd_one_out_is_named_with_what_the_others_have() -> None:
    """Of three hosts the one that differs is the one to repair."""
    (found,) = differences(three(torch="2.12.1"))
    assert found.odd == {"c": "2.12.1"}
    assert found.message == "torch differs: c has 2.12.1; the others 2.13.0"


def test_without_a_majority_every_host_is_named() -> None:
    """Of two hosts nobody knows which one is wrong."""
    (found,) = differences({"a": one("a"), "b": one("b", torch=None)})
    assert found.usual is None
    assert found.message == "torch differs: a 2.13.0, b -"


def test_a_patch_release_of_python_is_no_difference() -> None:
    """3.12.3 and 3.12.9 work together; 3.11 and 3.12 are another matter."""
    assert differences(three(version="3.12.9")) == []
    (found,) = differences(three(version="3.11.9"))
    assert found.message == "python differs: c has 3.11; the others 3.12"


def test_drivers_and_nccl_matter_only_where_gpus_are_used() -> None:
    """On CPUs nobody asks the driver."""
    known = {"a": one("a", driver="570.1", nccl="2.27"), "b": one("b", driver="560.2", nccl="2.28")}
    assert [found.what for found in differences(known)] == ["nccl", "driver"]
    assert differences(known, gpus=False) == []


def test_packages_that_differ_are_named() -> None:
    """An environment's hash alone helps nobody: say numpy, and which."""
    (found,) = differences(three(packages=("fsspec 2026.9", "numpy 2.3.0", "tokenizers 0.2", "torch 2.13.0")))
    assert found.what == "env"
    assert "(numpy, tokenizers)" in found.message


def test_an_environment_of_bootstrap_is_compared_by_its_hash() -> None:
    """The same versions from other files are told on one kind of machine; other kinds need other files."""
    made = {
        name: one(name, executable=f"/w/env/{hash_ * 64}/bin/python")
        for name, hash_ in zip("abc", "eef", strict=True)
    }
    (found,) = differences(made)
    assert found.what == "env"
    assert found.message == (
        "env differs: c has 3 packages, ffffffffffff; the others 3 packages, eeeeeeeeeeee"
        " (the same versions from other files)"
    )
    assert differences({**made, "c": dataclasses.replace(made["c"], machine="aarch64")}) == []


def test_torchs_own_companions_are_no_second_difference() -> None:
    """Another torch brings other nvidia wheels: one cause is told once."""
    odd = ("fsspec 2026.9", "numpy 2.4.6", "nvidia-nccl-cu12 2.27", "torch 2.12.1", "triton 3")
    assert [found.what for found in differences(three(torch="2.12.1", packages=odd))] == ["torch"]


def test_code_and_data_are_compared_too() -> None:
    """A tree that did not arrive, or another copy of the data, trains another model."""
    known = three()
    known["b"] = dataclasses.replace(known["b"], more=Machine(data=("123 456",)))
    found = differences(known, code={"a": "f" * 64, "b": "f" * 64, "c": "0" * 64})
    assert [(f.what, list(f.odd)) for f in found] == [("code", ["c"]), ("data", ["b"])]


def test_the_summary_says_what_is_shared_and_what_is_not() -> None:
    """One line for a person: versions, and what was let pass."""
    line = summary(compared(three(), gpus=False))
    assert line.startswith("python 3.12 · torch 2.13.0 · env 3 packages, ")
    line = summary(compared(three(torch="2.12"), gpus=False), ("torch",))
    assert line.startswith("python 3.12 · torch differs (allowed) · env ")


def test_only_what_is_allowed_passes() -> None:
    """--allow-mismatch torch says nothing about the driver."""
    found = differences({"a": one("a", driver="570"), "b": one("b", driver="560", torch="2.12")})
    assert [f.what for f in refusals(found, ("torch",))] == ["driver"]
    assert refusals(found, ("torch", "driver")) == []


@given(words=st.lists(st.sampled_from(FIELDS), max_size=6))
def test_allowed_words_may_be_joined_or_repeated(words: list[str]) -> None:
    """`--allow-mismatch a,b --allow-mismatch c` is a, b and c."""
    assert list(parse_allowed([",".join(words)])) == words
    assert list(parse_allowed(words)) == words


def test_a_word_that_is_not_compared_is_refused() -> None:
    """A typo must not open the gate, nor be silently without effect."""
    with pytest.raises(ConfigError, match="--allow-mismatch trch"):
        parse_allowed(["trch"])


@given(st.lists(st.lists(st.sampled_from(["a 1", "a 2", "b 1", "c 3"]), unique=True), min_size=1, max_size=4))
def test_changed_packages_are_those_not_everywhere_alike(sets: list[list[str]]) -> None:
    """A package is changed exactly when some host has a version of it that another has not."""
    known = {str(i): one(str(i), packages=tuple(sorted(s))) for i, s in enumerate(sets)}
    everywhere = set.intersection(*(set(s) for s in sets))
    assert changed_packages(known) == sorted({t.split()[0] for s in sets for t in s if t not in everywhere})


# Hosts compared as machines


def placed(name: str, **changes: Any) -> HostFacts:
    """A host with its own workdir on its own machine."""
    disk = Disk(path="/home/u/.llmctl", source="/dev/sda", size=1, free=1, mount="/", kind="ext4")
    more = {"boot_id": f"boot-{name}", "machine_id": f"id-{name}", "workdir_id": "8:1", "disks": (disk,)}
    return facts(name, more=Machine(**{**more, **changes}), reached_by=f"10.0.0.{ord(name) - 96}")


def hosts(*names: str) -> list[Any]:
    return [host(name, f"10.0.0.{ord(name) - 96}") for name in names]


def test_two_hosts_on_one_network_home_are_refused() -> None:
    """Both would write runs/<id>/node.json: the same folder of the same export."""
    nfs = Disk(path="/home/u/.llmctl", source="filer:/home", size=1, free=1, mount="/home", kind="nfs4")
    known = {n: placed(n, disks=(nfs,), workdir_id=f"{40 + i}:77") for i, n in enumerate("ab")}
    (found,) = pool_problems(hosts("a", "b"), known)
    assert found.host == "b"
    assert "same folder as on a" in found.message
    other = {**known, "b": placed("b", disks=(nfs,), workdir_id="41:78")}
    assert pool_problems(hosts("a", "b"), other) == []


def test_equal_local_inodes_on_two_machines_are_two_folders() -> None:
    """Clones of one image have the same inode numbers."""
    assert pool_verdicts(hosts("a", "b"), {n: placed(n) for n in "ab"}) == []


def test_one_sshd_under_two_names_is_one_machine() -> None:
    """The same host key and boot-id: its GPUs would be counted twice."""
    known = {n: placed(n, boot_id="x", workdir_id=f"8:{n}") for n in "ab"}
    keys = {"a": "SHA256:k", "b": "SHA256:k"}
    (found,) = pool_problems(hosts("a", "b"), known, keys)
    assert "same machine as a" in found.message
    assert pool_problems(hosts("a", "b"), known, {**keys, "b": "SHA256:other"}) == []


def test_a_cloned_machine_id_is_worth_a_word_only() -> None:
    """Two machines of one image train well; only the pin can't tell them apart."""
    (found,) = pool_verdicts(hosts("a", "b"), {n: placed(n, machine_id="same") for n in "ab"})
    assert (found.level, found.about) == (Level.WARN, "identity")
    containers = {n: placed(n, machine_id="same", container="docker") for n in "ab"}
    assert pool_verdicts(hosts("a", "b"), containers) == []


def test_unequal_mtus_name_the_odd_host_and_its_link() -> None:
    """Jumbo frames on some hosts only: the first big message is lost without a word."""

    def link(number: int, mtu: int) -> tuple[Interface, ...]:
        return (Interface(name="eth1", mtu=mtu, addresses=(f"10.0.0.{number}/24",)),)

    known = {n: placed(n, interfaces=link(i, 1500 if n == "c" else 9000)) for i, n in enumerate("abc", 1)}
    (found,) = pool_verdicts(hosts("a", "b", "c"), known)
    assert (found.host, found.about) == ("c", "mtu")
    assert found.message == "eth1 has MTU 1500, the others have 9000"
