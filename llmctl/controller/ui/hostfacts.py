"""One host's facts as lines for people; unknown ones are left out. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from llmctl.controller.probe.facts import Gpu, HostFacts
from llmctl.controller.probe.machine import Interface, Machine
from llmctl.controller.ui.format import duration, size
from llmctl.controller.ui.plain import plain


def fact_lines(facts: HostFacts) -> list[str]:
    """`name` and, below it, `what  facts` lines."""
    lines = [facts.host]
    for what, text in _pairs(facts):
        if text:
            lines.append(plain(f"  {what:<10} {text}"))
    return lines


def _pairs(facts: HostFacts) -> Iterator[tuple[str, str]]:
    more = facts.more
    yield "system", _joined(facts.system, f"{facts.kernel} {facts.machine}", _where(more))
    yield (
        "identity",
        _joined(
            more.hostname,
            f"machine-id {more.machine_id}" if more.machine_id else None,
            f"up {duration(more.uptime_s)}" if more.uptime_s else None,
        ),
    )
    yield "name", _joined(None if more.resolves_to is None else ", ".join(more.resolves_to) or "unresolved")
    yield "cpu", _cpu(facts)
    yield "memory", _memory(facts)
    yield "limits", _limits(more)
    for disk in more.disks:
        options = ",".join(o for o in disk.options if o in ("ro", "noexec", "nosuid"))
        free = f"{size(disk.free)} of {size(disk.size)} free"
        yield "disk", _joined(disk.path, free, disk.kind, options or None)
    for link in more.interfaces:
        if link.addresses and link.kind != "loopback":
            yield "interface", _link(link)
    for port in more.fabric:
        rate = f"{port.rate:g} Gb/s" if port.rate else None
        yield "fabric", _joined(f"{port.device}/{port.port}", port.state, rate, port.layer)
    yield from _python(facts)
    for gpu in facts.gpus:
        yield "gpu", _gpu(gpu)
    yield "gpu", more.gpu_error or ""
    for process in more.gpu_processes:
        yield (
            "gpu user",
            _joined(f"pid {process.pid}", process.name, process.user, process.run, size(process.memory)),
        )
    for xid in more.xids:
        yield "xid", _joined(f"{xid.code} {xid.pci}", xid.text)
    yield (
        "cuda",
        _joined(
            f"driver up to CUDA {more.cuda_driver}" if more.cuda_driver else None,
            *more.cuda,
            f"NCCL {more.nccl}" if more.nccl else None,
        ),
    )
    yield "containers", ", ".join(more.runtimes)
    yield "firewall", _firewall(more)
    if more.drained:
        yield "drained", _joined(more.drained.by, more.drained.reason)


def _python(facts: HostFacts) -> Iterator[tuple[str, str]]:
    if facts.python is None:
        yield "python", facts.python_error or ""
    else:
        python = facts.python
        yield (
            "python",
            _joined(
                python.executable,
                python.version,
                f"torch {python.torch}" if python.torch else "no torch",
                f"cuda {python.cuda}" if python.cuda else None,
                f"NCCL {python.nccl}" if python.nccl else None,
                f"{len(python.packages)} packages",
            ),
        )
    for found in facts.more.pythons:
        torch = f"torch {found.torch}" if found.torch else None
        yield "also", _joined(found.path, found.version, torch, None if found.venv else "no venv")


def _where(more: Machine) -> str | None:
    parts = [part for part in (more.container, more.virtualisation) if part]
    return " in ".join(parts) or None


def _cpu(facts: HostFacts) -> str:
    cpu, group = facts.more.cpu, facts.more.cgroup
    cores = f"{cpu.physical} cores, {cpu.logical} threads" if cpu.physical else f"{facts.cores} CPUs"
    limit = f"control group: {group.cpus:g} cores" if group.cpus else None
    return _joined(cpu.model, cores, limit)


def _memory(facts: HostFacts) -> str:
    more = facts.more
    limit = f"control group: {size(more.cgroup.memory)}" if more.cgroup.memory else None
    available = f"{size(more.memory_available)} available" if more.memory_available else None
    swap = f"{size(more.swap)} swap" if more.swap else None
    return _joined(size(facts.memory), available, swap, limit)


def _limits(more: Machine) -> str:
    limits = more.limits
    return _joined(
        f"{limits.nofile} open files" if limits.nofile else None,
        f"{limits.nproc} processes" if limits.nproc else None,
        f"{size(limits.memlock)} locked" if limits.memlock is not None else None,
    )


def _link(link: Interface) -> str:
    speed = f"{link.speed / 1000:g} Gb/s" if link.speed else None
    mtu = f"MTU {link.mtu}" if link.mtu else None
    kind = link.kind if link.kind != "ethernet" else None
    return _joined(link.name, ", ".join(link.addresses), speed, mtu, link.state, kind)


def _gpu(gpu: Gpu) -> str:
    return _joined(
        f"{gpu.index} {gpu.model}",
        f"{size(gpu.used)} of {size(gpu.memory)} used" if gpu.used is not None else size(gpu.memory),
        f"driver {gpu.driver}",
        gpu.pci,
        f"{gpu.ecc_errors} ECC errors" if gpu.ecc_errors else None,
        "MIG" if gpu.mig else None,
        "does not answer" if gpu.lost else None,
    )


def _firewall(more: Machine) -> str:
    drops = {True: "drops what comes in", False: "lets in", None: None}[more.firewall.drops_input]
    return _joined(", ".join(more.firewall.tools) or None, drops)


def _joined(*parts: str | None) -> str:
    return " · ".join(part for part in parts if part)
