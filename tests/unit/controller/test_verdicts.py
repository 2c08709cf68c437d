"""Each rule about a machine: where it speaks, how loudly, and that a healthy machine is left in peace."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from llmctl.controller.plan.preflight import checkpoint_bytes, job_problems, verdicts
from llmctl.controller.plan.verdicts import Level, Verdict
from llmctl.controller.probe.facts import Gpu, HostFacts
from llmctl.controller.probe.machine import (
    CgroupLimits,
    Disk,
    FabricPort,
    Firewall,
    GpuProcess,
    Limits,
    Machine,
    Skew,
    Xid,
)
from llmctl.wire.records import Drained
from tests.unit.controller.builders import facts, host, job

HEALTHY = Machine(
    hostname="a",
    resolves_to=("10.0.0.1",),
    skew=Skew(ahead=0.01, error=0.02),
    memory_available=1 << 33,
    limits=Limits(nofile=65536, nproc=60000, memlock=None),
    disks=(
        Disk(path="/home/u/.llmctl", source="/dev/sda", size=1 << 40, free=1 << 39, mount="/", inodes=10**7),
        Disk(path="/home/u", source="/dev/sda", size=1 << 40, free=1 << 39, mount="/"),
        Disk(path="/dev/shm", source="tmpfs", size=1 << 34, free=1 << 34, mount="/dev/shm"),
    ),
    firewall=Firewall(tools=("nft",), drops_input=False),
)


def gpu(index: int = 0, **changes: Any) -> Gpu:
    values: dict[str, Any] = {"model": "H100", "memory": 80 << 30, "driver": "570.86", "uuid": f"GPU-{index}"}
    return Gpu(index=index, **{**values, **changes})


def machine(*gpus: Gpu, torch: str = "2.13.0+cu126", cuda: str | None = "12.6", **changes: Any) -> HostFacts:
    """A healthy host in which `changes` of its Machine are wrong."""
    known = facts("a", gpus=gpus, more=dataclasses.replace(HEALTHY, **changes))
    assert known.python is not None
    return dataclasses.replace(known, python=dataclasses.replace(known.python, torch=torch, cuda=cuda))


def disk(path: str, **changes: Any) -> tuple[Disk, ...]:
    """The healthy disks with one of them changed."""
    return tuple(dataclasses.replace(d, **changes) if d.path == path else d for d in HEALTHY.disks)


def judged(known: HostFacts, **host_keys: Any) -> list[Verdict]:
    return verdicts(host("a", "10.0.0.1", **host_keys), known)


def test_a_healthy_machine_has_no_verdict() -> None:
    """No rule cries wolf, with GPUs or without."""
    assert judged(machine()) == []
    assert judged(machine(gpu(0, ecc_errors=0, used=1 << 20, temperature=40), gpu(1))) == []


def test_unknown_facts_are_no_findings() -> None:
    """A host where nothing could be read (no tools, no rights) is not called sick."""
    assert judged(facts("a", more=Machine())) == []


WARN, UNFIT = Level.WARN, Level.UNFIT
CASES: list[tuple[HostFacts, str, Level, str]] = [
    (machine(skew=Skew(ahead=2.5, error=0.1)), "clock", WARN, "2.5 s ahead"),
    (machine(skew=Skew(ahead=-70.0, error=0.1)), "clock", UNFIT, "70.0 s behind"),
    (machine(disks=disk("/home/u/.llmctl", free=1 << 30)), "disk", WARN, "only 1.1 GB free"),
    (machine(disks=disk("/home/u/.llmctl", inodes=500)), "disk", WARN, "500 inodes"),
    (machine(disks=disk("/home/u/.llmctl", inodes=0)), "disk", UNFIT, "0 inodes"),
    (machine(disks=disk("/home/u/.llmctl", options=("noexec",))), "noexec", WARN, "noexec mount"),
    (machine(disks=disk("/home/u", options=("rw", "noexec"))), "noexec", WARN, "home folder"),
    (machine(disks=disk("/home/u", mount="/home", options=("ro",))), "home", WARN, "read-only"),
    (machine(disks=disk("/dev/shm", size=64 << 19)), "shm", WARN, "32 MB"),
    (machine(memory_available=1 << 29), "memory", WARN, "0.5 of 17.2 GB"),
    (machine(limits=Limits(nofile=1024)), "nofile", WARN, "1024 open files"),
    (machine(limits=Limits(nproc=500)), "nproc", WARN, "500 processes"),
    (
        machine(limits=Limits(memlock=65536), fabric=(FabricPort(device="mlx5_0", port=1, state="active"),)),
        "memlock",
        WARN,
        "64 kB",
    ),
    (machine(resolves_to=("127.0.1.1",)), "name", WARN, "127.0.1.1"),
    (machine(resolves_to=()), "name", WARN, "does not resolve"),
    (machine(firewall=Firewall(drops_input=True)), "firewall", WARN, "packet filter"),
    (machine(drained=Drained(by="eve@laptop", reason="fan")), "drained", UNFIT, "by eve@laptop: fan"),
    (machine(gpu_error="Failed to initialize NVML"), "driver", UNFIT, "Failed to initialize"),
    (machine(gpu(lost=True)), "gpu", UNFIT, "does not answer"),
    (machine(gpu(ecc_errors=3)), "ecc", WARN, "3 uncorrected"),
    (machine(gpu(retired=True)), "ecc", WARN, "wait to be retired"),
    (machine(gpu(mig=True)), "mig", WARN, "MIG slices"),
    (machine(gpu(temperature=91)), "heat", WARN, "91 °C"),
    (machine(gpu(), xids=(Xid(pci="0000:07:00", code=48, text="DBE"),)), "xid", WARN, "Xid 48"),
    (machine(gpu(), xids=(Xid(pci="0000:07:00", code=79, text="bus"),)), "xid", UNFIT, "Xid 79"),
    (machine(gpu(driver="470.1")), "driver", UNFIT, "too old for torch's CUDA 12.6"),
    (machine(gpu(), torch="2.13.0+cpu", cuda=None), "torch", UNFIT, "built for CPUs"),
    (machine(gpu(used=60 << 30)), "foreign", UNFIT, "by whom can't be seen"),
]


@pytest.mark.parametrize(("known", "about", "level", "words"), CASES)
def test_a_fault_is_told_once_at_its_level_with_what_to_do(
    known: HostFacts, about: str, level: Level, words: str
) -> None:
    """One fault, one finding, of that weight, and never without a hint."""
    (found,) = judged(known)
    assert (found.about, found.level) == (about, level)
    assert words in found.message
    assert found.hint


def test_a_skew_that_the_round_trip_may_explain_is_none() -> None:
    """3 s off, known to within 2 s, may be 1 s: not worth a word."""
    assert judged(machine(skew=Skew(ahead=3.0, error=2.0))) == []


def test_a_programs_own_xid_says_nothing_about_the_hardware() -> None:
    """31 (a fault of the kernel that ran) must not send anybody to reset a GPU."""
    assert judged(machine(gpu(), xids=(Xid(pci="0000:07:00", code=31, text="MMU"),))) == []


@pytest.mark.parametrize(
    ("process", "exclusive", "level"),
    [
        (GpuProcess(gpu="GPU-0", pid=7, memory=100 << 20), False, None),
        (GpuProcess(gpu="GPU-0", pid=7, memory=1 << 30, user="bob"), False, WARN),
        (GpuProcess(gpu="GPU-0", pid=7, memory=60 << 30, user="bob"), False, UNFIT),
        (GpuProcess(gpu="GPU-0", pid=7, memory=100 << 20), True, UNFIT),
        (GpuProcess(gpu="GPU-1", pid=7, memory=60 << 30), False, None),
    ],
)
def test_others_on_a_gpu_matter_by_what_they_hold(
    process: GpuProcess, exclusive: bool, level: Level | None
) -> None:
    """A desktop's few MB are fine; half a GPU, or any process on an exclusive one, is not."""
    found = judged(machine(gpu(exclusive=exclusive), gpu_processes=(process,)))
    assert [verdict.level for verdict in found] == ([] if level is None else [level])


def test_our_own_run_on_a_gpu_is_named_with_how_to_stop_it() -> None:
    """Who sees `python` wants to know that it is llmctl's own run."""
    held = GpuProcess(gpu="GPU-0", pid=7, memory=70 << 30, run="demo-7f3a")
    (found,) = judged(machine(gpu(), gpu_processes=(held,)))
    assert "run demo-7f3a" in found.message
    assert found.hint == "llmctl stop demo-7f3a"


@pytest.mark.parametrize(
    ("limits", "slots", "words"),
    [
        (CgroupLimits(memory=3 << 30), 4, "3.2 GB for 4 ranks"),
        (CgroupLimits(cpus=1.5), 2, "1.5 of 4 cores for 2 ranks"),
        (CgroupLimits(cpuset=2), 3, "2 of 4 cores for 3 ranks"),
        (CgroupLimits(memory=64 << 30, cpus=4, cpuset=4), 4, None),
    ],
)
def test_a_container_smaller_than_its_ranks_is_told(
    limits: CgroupLimits, slots: int, words: str | None
) -> None:
    """nproc and free see the whole machine; the control group is what counts."""
    found = judged(machine(cgroup=limits), slots=slots)
    assert [words in verdict.message if words else False for verdict in found] == ([True] if words else [])


def test_gpu_faults_do_not_stop_a_job_that_uses_none() -> None:
    """`backend: gloo` trains on CPUs: a broken driver is then only worth a word."""
    broken = machine(gpu_error="Failed to initialize NVML")
    assert job_problems(host("a", "x"), broken, job(train={"backend": "gloo"})) == []
    auto = job_problems(host("a", "x"), broken, job())
    assert [verdict.about for verdict in auto] == ["driver"], "auto would quietly train on CPUs"


def test_a_host_without_gpus_but_with_the_tool_is_a_cpu_host() -> None:
    """An image with nvidia-smi on a machine without GPUs is fit for `auto`."""
    known = machine(gpu_error="No devices were found")
    assert job_problems(host("a", "x"), known, job()) == []


def test_small_shm_stops_several_gpu_ranks_only() -> None:
    """NCCL's ranks of one host talk through /dev/shm; one rank alone has nobody to talk to."""
    small = {"disks": disk("/dev/shm", size=64 << 19)}
    one, two = machine(gpu(), **small), machine(gpu(), gpu(1), **small)
    assert [verdict.level for verdict in judged(one)] == [WARN]
    assert [verdict.level for verdict in judged(two)] == [UNFIT]


def test_a_local_host_is_not_told_about_its_name_or_firewall() -> None:
    """This machine talks to itself over loopback."""
    known = machine(resolves_to=("127.0.1.1",), firewall=Firewall(drops_input=True))
    assert verdicts(host("a", "local"), known) == []


def test_checkpoints_that_do_not_fit_are_told_before_the_first() -> None:
    """tiny is 1.2 M + 32k x 192 parameters, 12 bytes each; keep 3 needs room for four."""
    asked = job(recipe={"model": {"size": "tiny"}})
    one = checkpoint_bytes(asked)
    assert one is not None
    assert 80e6 < one < 100e6
    tight = dataclasses.replace(machine(), disk_free=3 * one)
    told = {(v.about, v.level) for v in verdicts(host("a", "x"), tight, asked)}
    assert told == {("disk", WARN), ("tokenizers", WARN)}
    hopeless = dataclasses.replace(machine(), disk_free=70 << 20)
    assert ("disk", UNFIT) in [(v.about, v.level) for v in verdicts(host("a", "x"), hopeless, asked)]
    assert checkpoint_bytes(job(code={"path": "."}, train={"script": "t.py"})) is None


def test_the_worst_comes_first() -> None:
    """A reader who stops after one line has read the one that matters."""
    known = machine(skew=Skew(ahead=90.0, error=0.0), limits=Limits(nofile=10), memory_available=1)
    assert [verdict.level for verdict in judged(known)] == [UNFIT, WARN, WARN]
