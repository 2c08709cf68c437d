"""What the planner knows of machines: ranks, memory, speed, links, each with where it comes from. Pure.

A host that was probed brings its own memory and GPU models; `--fake-hosts` brings names of this catalogue.
What nobody measured is assumed, and every assumption is a line of `Fleet.notes`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from llmctl.controller.probe.facts import HostFacts
from llmctl.errors import ConfigError

GB = 10**9
TERA = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What one rank computes on.

    Attributes:
        memory: bytes for one rank.
        bf16, fp32: floating-point operations per second at best, dense.
        efficiency: share of that which a training step reaches.
        inside: bytes per second between two ranks of one host, each way.
        source: of the numbers.
    """

    name: str
    memory: int
    bf16: float
    fp32: float
    efficiency: float
    inside: float
    source: str
    is_cpu: bool = False


def _gpu(name: str, memory: int, bf16: float, fp32: float, inside: float, source: str) -> Device:
    # Megatron-LM reached 44-52 % of an A100's peak from 1.7 B to 1 T parameters (arXiv 2104.04473, table 1).
    return Device(
        name=name,
        memory=memory * GB,
        bf16=bf16 * TERA,
        fp32=fp32 * TERA,
        efficiency=0.45,
        inside=inside * GB,
        source=source,
    )


CATALOGUE = {
    device.name: device
    for device in (
        _gpu("H200-141GB", 141, 989.4, 66.9, 450, "NVIDIA H200 datasheet, SXM; NVLink 900 GB/s both ways"),
        _gpu("H100-80GB", 80, 989.4, 66.9, 450, "NVIDIA H100 datasheet, SXM; NVLink 900 GB/s both ways"),
        _gpu("H100-PCIE-80GB", 80, 756.5, 51.2, 50, "NVIDIA H100 datasheet, PCIe 5.0 x16"),
        _gpu("A100-80GB", 80, 311.9, 19.5, 300, "NVIDIA A100 datasheet, SXM; NVLink 600 GB/s both ways"),
        _gpu("A100-40GB", 40, 311.9, 19.5, 300, "NVIDIA A100 datasheet, SXM; NVLink 600 GB/s both ways"),
        _gpu("L40S-48GB", 48, 362.0, 91.6, 25, "NVIDIA L40S datasheet, PCIe 4.0 x16"),
        _gpu("L4-24GB", 24, 121.0, 30.3, 25, "NVIDIA L4 datasheet, PCIe 4.0 x16"),
        _gpu("RTX4090-24GB", 24, 165.2, 82.6, 25, "NVIDIA Ada architecture whitepaper, PCIe 4.0 x16"),
        _gpu("MI300X-192GB", 192, 1307.4, 163.4, 448, "AMD Instinct MI300X datasheet, Infinity Fabric"),
    )
}

CPU_CORE_FP32 = 60e9
"""Assumed per core: between a 2 GHz core with AVX2 (64 at best) and one with AVX-512 (measured: 92)."""
CPU_BF16_FACTOR = 2.2
"""Measured on a core with avx512_bf16: 210 against 92 GFLOP/s. Without the instructions bf16 is slower."""
CPU_EFFICIENCY = 0.8
"""Measured on 2 cores: the bare loop reaches 0.85 of the matmul peak."""
CPU_INSIDE = 2e9
"""gloo over the loopback interface, assumed."""
CPU_MEMORY_SHARE = 0.9
"""Of a host's memory; the rest is the system's and the page cache's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One host: its ranks are alike."""

    host: str
    ranks: int
    device: Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Network: bytes per second of one host, each way, and seconds that a message takes at least."""

    between: float
    latency_inside: float
    latency_between: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All machines in rank order. `notes`: what was assumed, for people."""

    machines: tuple[Machine, ...]
    links: Links
    notes: tuple[str, ...] = ()

    @property
    def world(self) -> int:
        return sum(machine.ranks for machine in self.machines)

    @property
    def slowest(self) -> Device:
        """The device that everyone waits for, with the least memory and bandwidth of any."""
        devices = [machine.device for machine in self.machines]
        slowest = min(devices, key=lambda device: device.bf16 * device.efficiency)
        return replace(
            slowest,
            memory=min(device.memory for device in devices),
            fp32=min(device.fp32 for device in devices),
            inside=min(device.inside for device in devices),
        )

    @property
    def name(self) -> str:
        """`64 x 8 x H100-80GB`, or `8 + 4 ranks`."""
        slots = sorted({machine.ranks for machine in self.machines})
        kinds = sorted({machine.device.name for machine in self.machines})
        hosts = len(self.machines)
        if len(slots) == 1:
            return f"{hosts} x {slots[0]} x {' and '.join(kinds)}"
        return f"{hosts} hosts with {slots[0]} to {slots[-1]} x {' and '.join(kinds)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What was measured, or what a person says; None: it is assumed.

    Attributes:
        between, latency: of a host's network, bytes per second and seconds.
        flops: per rank and second, reached.
        measured: where `between` comes from, if it was not a person who gave it.
        speeds: samples per second of one rank, by host, where shares are to go by that.
    """

    between: float | None = None
    inside: float | None = None
    latency: float | None = None
    flops: float | None = None
    measured: str = ""
    speeds: Mapping[str, float] = field(default_factory=dict)


def fake_fleet(text: str, given: Given) -> Fleet:
    """`64x8xH100-80GB`, `2x4xcpu-8c-32GB` (cores and memory of a host), several with `+`.

    Raises:
        ConfigError: not of this form, or an unknown device; names the known ones.
    """
    machines: list[Machine] = []
    for part in text.split("+"):
        found = re.fullmatch(r"(\d{1,6})x(\d{1,4})x([A-Za-z0-9.-]+)", part.strip())
        if found is None or not int(found[1]) or not int(found[2]):
            raise ConfigError(
                f"--fake-hosts: {part.strip()!r} is not HOSTSxRANKSxDEVICE",
                hint="64x8xH100-80GB, 2x4xcpu-8c-32GB, or several: 4x8xH100-80GB+2x4xA100-40GB",
            )
        hosts, ranks = int(found[1]), int(found[2])
        device = _cpu_by_name(found[3], ranks) or known_device(found[3])
        machines += [
            Machine(host=f"fake{len(machines) + n}", ranks=ranks, device=device) for n in range(hosts)
        ]
    return _fleet(tuple(machines), given, [])


def known_device(name: str) -> Device:
    """A device of the catalogue, whatever the case. Raises ConfigError with the known names."""
    by_name = {known.lower(): device for known, device in CATALOGUE.items()}
    if name.lower() in by_name:
        return by_name[name.lower()]
    near = difflib.get_close_matches(name.lower(), list(by_name), n=1)
    meant = f"; did you mean {by_name[near[0]].name}?" if near else ""
    raise ConfigError(
        f"unknown device {name!r}{meant}", hint="known: " + ", ".join(CATALOGUE) + ", cpu-<cores>c-<GB>GB"
    )


def _cpu_by_name(name: str, ranks: int) -> Device | None:
    found = re.fullmatch(r"cpu-(\d{1,4})c-(\d{1,5})GB", name, re.IGNORECASE)
    if found is None or not int(found[1]):
        return None
    return cpu_device(int(found[1]), int(found[2]) * GB, ranks)


def cpu_device(cores: int, memory: int, ranks: int) -> Device:
    """One of `ranks` equal parts of a host without GPUs."""
    share = cores / ranks
    return Device(
        name=f"cpu-{cores}c",
        memory=int(memory * CPU_MEMORY_SHARE / ranks),
        bf16=share * CPU_CORE_FP32 * CPU_BF16_FACTOR,
        fp32=share * CPU_CORE_FP32,
        efficiency=CPU_EFFICIENCY,
        inside=CPU_INSIDE,
        source=f"{CPU_CORE_FP32 / 1e9:.0f} GFLOP/s per core in fp32, assumed",
        is_cpu=True,
    )


def probed_fleet(
    ranks: dict[str, int], facts: dict[str, HostFacts], given: Given, local: Collection[str] = ()
) -> Fleet:
    """The hosts that answered.

    Args:
        ranks: how many on each host, in rank order.
        local: those that are this machine: they share its memory, cores and GPUs.
    """
    notes: list[str] = []
    here = [host for host in ranks if host in local]
    on_this_machine = sum(ranks[host] for host in here)
    machines = tuple(
        Machine(
            host=host,
            ranks=count,
            device=_probed_device(facts[host], on_this_machine if host in here else count, notes),
        )
        for host, count in ranks.items()
    )
    if len(here) > 1:
        notes.append(f"{', '.join(here)} are one machine: each rank has 1/{on_this_machine} of it")
    if len(here) == len(machines) > 1 and given.between is None:
        given = replace(given, between=min(machine.device.inside for machine in machines))
    return _fleet(machines, given, notes)


def _probed_device(facts: HostFacts, ranks: int, notes: list[str]) -> Device:
    """The catalogue's entry for the host's GPU model with the memory that its driver reports."""
    if not facts.gpus or ranks > len(facts.gpus):
        return cpu_device(facts.cores, facts.memory, ranks)
    gpu = min(facts.gpus[:ranks], key=lambda gpu: gpu.memory)
    words = set(re.findall(r"[A-Z]+\d+[A-Z]*|\d{4}", gpu.model.upper()))
    for device in CATALOGUE.values():
        model = device.name.split("-")[0]
        if model in words or (model.startswith("RTX") and model[3:] in words):
            if "PCIE" in gpu.model.upper() and f"{model}-PCIE-80GB" in CATALOGUE:
                device = CATALOGUE[f"{model}-PCIE-80GB"]  # noqa: PLW2901
            return replace(device, memory=gpu.memory)
    notes.append(f"{facts.host}: no speed known of {gpu.model}; taken for an A100's, --flops says better")
    return replace(CATALOGUE["A100-80GB"], name=gpu.model, memory=gpu.memory, source="assumed")


def _fleet(machines: tuple[Machine, ...], given: Given, notes: list[str]) -> Fleet:
    if given.flops is not None:
        machines = tuple(replace(m, device=_measured(m.device, given.flops)) for m in machines)
    else:
        for device in {machine.device.name: machine.device for machine in machines}.values():
            reached = f"{device.efficiency:.0%} of its peak reached, assumed (--flops says what is measured)"
            notes.append(f"{device.name}: {device.source}; {reached}")
    if given.inside is not None:
        inside = given.inside
        machines = tuple(replace(m, device=replace(m.device, inside=inside)) for m in machines)
    is_cpu = any(machine.device.is_cpu for machine in machines)
    between = given.between or (0.125 * GB if is_cpu else 12.5 * GB)
    if given.between is None and len(machines) > 1:
        notes.append(
            f"{between * 8 / GB:.0f} Gbit/s between hosts, assumed (llmctl hosts map measures it, "
            "--bandwidth says it)"
        )
    if given.measured and len(machines) > 1:
        notes.append(f"{between * 8 / GB:.1f} Gbit/s between hosts: {given.measured}")
    latency = given.latency or (200e-6 if is_cpu else 30e-6)
    links = Links(between=between, latency_inside=50e-6 if is_cpu else 10e-6, latency_between=latency)
    return Fleet(machines=machines, links=links, notes=tuple(notes))


def _measured(device: Device, flops: float) -> Device:
    return replace(device, bf16=flops, fp32=flops, efficiency=1.0, source="measured")
