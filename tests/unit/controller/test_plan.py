"""Planning: pure, printable, and right about addresses and ranks."""

from __future__ import annotations

import dataclasses

import pytest

from llmctl.controller.plan.network import interface, master_address
from llmctl.controller.plan.plan import Identity, Plan, plan_run
from llmctl.controller.plan.preflight import host_problems, job_problems, manifest_paths
from llmctl.controller.probe.facts import Gpu
from llmctl.errors import PreflightError
from llmctl.wire import codec
from llmctl.wire.specs import NodeSpec
from tests.unit.controller.builders import config, facts, host, job

LO = ("lo", "127.0.0.1", 8)
IDENTITY = Identity(run_id="demo-7f3a", attempt=1, created_at=1.0, agent="f" * 64, tree=None)


def two_hosts() -> Plan:
    a, b = host("a", "10.0.0.1", slots=2), host("b", "10.0.0.2", slots=3)
    known = {
        "a": facts("a", LO, ("eth0", "10.0.0.1", 24), reached_by="10.0.0.1"),
        "b": facts("b", LO, ("eth1", "10.0.0.2", 24), reached_by="10.0.0.2"),
    }
    return plan_run(config(a, b), known, IDENTITY)


def test_ranks_are_numbered_through_hosts_with_unequal_slots() -> None:
    """Every rank has one number; the world is the sum of all slots."""
    plan = two_hosts()
    first = [(n.launch.node_rank, n.launch.first_rank, n.launch.nproc) for n in plan.nodes]
    assert first == [(0, 0, 2), (1, 2, 3)]
    assert {n.launch.world_size for n in plan.nodes} == {5}
    assert plan.master_addr == "10.0.0.1"
    assert plan.master_port == 20111


def test_each_host_has_its_own_interface() -> None:
    """NIC names differ between hosts; each gets the one that its own network has."""
    assert [n.launch.interface for n in two_hosts().nodes] == ["eth0", "eth1"]


def test_a_plan_is_the_same_value_each_time() -> None:
    """No clock, no randomness: what `--dry-run` printed is what runs."""
    assert two_hosts() == two_hosts()


def test_a_node_spec_survives_the_wire() -> None:
    """What the planner made is what the host reads."""
    for node in two_hosts().nodes:
        assert codec.loads(NodeSpec, codec.dumps(node)) == node


def test_slots_come_from_the_host_then_its_gpus_then_one() -> None:
    """A GPU host without `slots` uses all its GPUs."""
    gpu = Gpu(index=0, model="H100", memory=1, driver="1")
    known = {"a": facts("a", LO, ("eth0", "10.0.0.1", 24), gpus=(gpu,) * 8)}
    plan = plan_run(config(host("a", "10.0.0.1")), known, IDENTITY)
    assert (plan.world_size, plan.backend) == (8, "nccl")


def test_local_hosts_meet_on_loopback() -> None:
    """Two `local` hosts need no network at all."""
    hosts = (host("a", "local"), host("b", "local"))
    known = {h.name: facts(h.name, LO, ("eth0", "192.0.2.1", 24)) for h in hosts}
    assert master_address(hosts, known) == "127.0.0.1"
    assert interface(hosts[1], known["b"], "127.0.0.1") == "lo"


def test_a_public_address_that_no_interface_has_is_not_the_master() -> None:
    """Behind NAT, peers use the address that the host itself has."""
    a = host("a", "203.0.113.9")
    known = {"a": facts("a", LO, ("eth0", "10.0.0.1", 24), reached_by="203.0.113.9")}
    assert master_address((a,), known) == "10.0.0.1"
    given = host("a", "203.0.113.9", internal_addr="172.16.0.9")
    assert master_address((given,), known) == "172.16.0.9"


def test_a_host_without_any_address_is_refused() -> None:
    """Better one line now than a rendezvous that hangs."""
    with pytest.raises(PreflightError, match="no network address"):
        master_address((host("a", "10.0.0.1"),), {"a": facts("a", LO)})


def test_a_dead_interpreter_and_a_missing_torch_are_told_with_what_to_do() -> None:
    """The storyboard's line: which python, which version, what to set."""
    a = host("a", "10.0.0.1")
    (dead,) = host_problems(a, facts("a", LO, python=None, python_error="sh: python3: not found"))
    assert "python does not start: sh: python3: not found" in dead.message
    known = facts("a", LO)
    assert known.python is not None
    bare = dataclasses.replace(known, python=dataclasses.replace(known.python, torch=None))
    (problem,) = host_problems(a, bare)
    assert problem.message == "python has no torch (/usr/bin/python3, 3.12.3)"
    assert "hosts.yaml" in problem.hint


def test_a_fit_host_has_no_problem() -> None:
    """The check can say yes."""
    assert job_problems(host("a", "10.0.0.1"), facts("a", LO), job()) == []


def test_a_full_disk_is_a_problem_before_the_start() -> None:
    """A run that could not even write its logs must not start."""
    (problem,) = host_problems(host("a", "10.0.0.1"), facts("a", LO, disk_free=1 << 20))
    assert "only 1 MB free" in problem.message


def test_data_that_is_not_on_the_host_is_named() -> None:
    """The manifest's own path, as the host would open it."""
    (problem,) = job_problems(host("a", "x"), facts("a", LO, data_missing=(0,)), job())
    assert "/shards/manifest.json does not exist there" in problem.message


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/d/s", "/d/s/manifest.json"),
        ("file:///d/s/", "/d/s/manifest.json"),
        ("s3://b/s", ""),
        ("hdfs://nn/s", ""),
    ],
)
def test_only_folders_are_looked_for_on_hosts(uri: str, path: str) -> None:
    """A store is asked by the workers, not by `test -f`."""
    assert manifest_paths(job(data={"uri": uri})) == ([path] if path else [])


def test_a_mixture_reaches_every_host_with_its_weights() -> None:
    """`data.mix` is told to every node in its order; a mixture of one is that corpus alone."""
    mix = [{"uri": "/a", "weight": 3}, {"uri": "s3://b/c"}, {"uri": "/d"}]
    a = host("a", "10.0.0.1")
    known = {"a": facts("a", LO, ("eth0", "10.0.0.1", 24))}
    (node,) = plan_run(config(a, data={"mix": mix}), known, IDENTITY).nodes
    assert node.data_uri is None
    assert [(source.uri, source.weight) for source in node.corpora] == [("/a", 3), ("s3://b/c", 1), ("/d", 1)]
    (single,) = plan_run(config(a, data={"mix": mix[:1]}), known, IDENTITY).nodes
    assert (single.data_uri, single.data_mix) == ("/a", ())
    (problem,) = job_problems(a, facts("a", LO, data_missing=(1,)), job(data={"mix": mix}))
    assert "/d/manifest.json does not exist there" in problem.message


def test_local_hosts_share_the_cores_of_this_machine() -> None:
    """Two local hosts on 4 cores get 2 threads each, unless the job says otherwise."""
    hosts = (host("a", "local"), host("b", "local"))
    known = {h.name: facts(h.name, LO) for h in hosts}
    plan = plan_run(config(*hosts), known, IDENTITY)
    assert [node.env["OMP_NUM_THREADS"] for node in plan.nodes] == ["2", "2"]
    assert [node.recipe.threads for node in plan.nodes if node.recipe] == [2, 2]
    asked = plan_run(config(*hosts, recipe={"threads": 1}), known, IDENTITY)
    assert [node.recipe.threads for node in asked.nodes if node.recipe] == [1, 1]
    assert [node.recipe.threads for node in two_hosts().nodes if node.recipe] == [None, None]


@pytest.mark.parametrize(
    ("slots", "cores", "fit"), [(16, 2, True), (17, 2, False), (64, 16, True), (65, 16, False)]
)
def test_far_more_ranks_than_cores_are_refused(slots: int, cores: int, fit: bool) -> None:
    """`-j 2x70000` must not start: without GPUs a host has its cores to share."""
    found = job_problems(host("a", "x", slots=slots), facts("a", LO, cores=cores), job())
    assert [problem.message.split(";")[0] for problem in found] == (
        [] if fit else [f"{slots} ranks on {cores} cores"]
    )
