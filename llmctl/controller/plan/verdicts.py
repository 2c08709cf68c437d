"""What a host's facts mean for training: each rule says ok (nothing), warn or unfit, and what to do. Pure.

Rules about the job itself and about the interpreter stand in `preflight.py`; those that compare hosts in
`parity.py` and `pool.py`.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from llmctl.controller.config.types import Host
from llmctl.controller.probe.facts import Gpu, HostFacts
from llmctl.controller.probe.machine import Disk, GpuProcess

SKEW_WARN_S, SKEW_UNFIT_S = 2.0, 60.0
"""Beyond the first, timelines of several hosts mislead; beyond the second, certificates and leases fail."""

CLOCK = "clock"
"""What a verdict about the host's wall clock is about."""

ROOMY = 5 << 30
FEWEST_INODES = 10_000
LEAST_MEMORY = 1 << 30
LEAST_MEMORY_PER_RANK = 1 << 30
LEAST_SHM = 64 << 20
"""Docker's default for /dev/shm, which DataLoader workers and NCCL fill at once."""

LEAST_NOFILE, LEAST_NPROC = 4096, 1024
FOREIGN_WARN, FOREIGN_UNFIT = 256 << 20, 0.5
"""GPU memory in others' hands: bytes worth telling, and the share of a GPU that leaves no room for a job."""

HOT_C = 87
SICK_XIDS = frozenset({46, 48, 61, 62, 63, 64, 74, 79, 92, 94, 95, 109, 110, 119, 120, 121, 136, 140, 143})
"""Faults of hardware, link or driver firmware; others (13, 31, 43, 45 …) are a program's own."""

DEAD_XIDS = frozenset({64, 79, 95})
"""After these a GPU does not work until a reset or a reboot."""

OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""CUDA that torch was built for -> oldest driver that runs it."""


class Level(StrEnum):
    """How bad. `warn` is told and nothing more; `unfit` keeps a job from starting there."""

    WARN = "warn"
    UNFIT = "unfit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One finding about one host: `about` is a word to filter by, `hint` what to do."""

    host: str
    message: str
    hint: str
    about: str = "host"
    level: Level = Level.UNFIT


def machine_verdicts(host: Host, facts: HostFacts, *, ranks: int, uses_gpus: bool) -> list[Verdict]:
    """Every finding about the machine, worst first.

    Args:
        ranks: processes that would run there.
        uses_gpus: what is wrong with GPUs matters: a job would use them.
    """
    case = _Case(host=host, facts=facts, ranks=ranks, uses_gpus=uses_gpus)
    found = [verdict for rule in RULES for verdict in rule(case)]
    return sorted(found, key=lambda verdict: verdict.level is Level.WARN)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    host: Host
    facts: HostFacts
    ranks: int
    uses_gpus: bool

    def warn(self, about: str, message: str, hint: str) -> Verdict:
        return Verdict(host=self.host.name, about=about, level=Level.WARN, message=message, hint=hint)

    def unfit(self, about: str, message: str, hint: str) -> Verdict:
        return Verdict(host=self.host.name, about=about, message=message, hint=hint)

    def graver(self, unfit: bool, about: str, message: str, hint: str) -> Verdict:
        return (self.unfit if unfit else self.warn)(about, message, hint)


def _drained(case: _Case) -> Iterator[Verdict]:
    mark = case.facts.more.drained
    if mark is not None:
        by = f" by {mark.by}" if mark.by else ""
        why = f": {mark.reason}" if mark.reason else ""
        name = case.host.name
        yield case.unfit("drained", f"drained{by}{why}", f"llmctl hosts undrain {name}, or --limit '!{name}'")


def _clock(case: _Case) -> Iterator[Verdict]:
    skew = case.facts.more.skew
    if skew is None or not math.isfinite(skew.error) or abs(skew.ahead) - skew.error <= SKEW_WARN_S:
        return
    way = "ahead" if skew.ahead > 0 else "behind"
    yield case.graver(
        abs(skew.ahead) - skew.error > SKEW_UNFIT_S,
        CLOCK,
        f"its clock is {abs(skew.ahead):.1f} s {way} of this machine's (± {skew.error:.1f} s)",
        f"on {case.host.name}: timedatectl set-ntp true   (and look at this machine's own clock)",
    )


def _disk(case: _Case) -> Iterator[Verdict]:
    facts = case.facts
    disk = facts.more.disk(facts.workdir)
    if facts.workdir_error or disk is None:
        return  # preflight tells
    if disk.free < ROOMY:
        yield case.warn(
            "disk",
            f"only {disk.free / 1e9:.1f} GB free for {facts.workdir} (on {disk.mount})",
            f"llmctl hosts clean --limit {case.host.name}, or set `workdir:` for it in hosts.yaml",
        )
    if disk.inodes is not None and disk.inodes < FEWEST_INODES:
        yield case.graver(
            disk.inodes < 100,
            "disk",
            f"only {disk.inodes} inodes free on {disk.mount}: no room for more files",
            f"remove small files on {case.host.name}, or set `workdir:` for it in hosts.yaml",
        )
    yield from _mount_options(case, disk)


def _mount_options(case: _Case, disk: Disk) -> Iterator[Verdict]:
    home = case.facts.more.disk(case.facts.home)
    if "noexec" in disk.options:
        yield case.warn(
            "noexec",
            f"{case.facts.workdir} lies on a noexec mount ({disk.mount}): compiled kernels can't be loaded",
            "set `workdir:` to another disk, and TRITON_CACHE_DIR in the job's `env`",
        )
    elif home is not None and "noexec" in home.options:
        yield case.warn(
            "noexec",
            f"the home folder is mounted noexec ({home.mount}): torch.compile and Triton keep programs there",
            "env: {set: {TRITON_CACHE_DIR: /tmp/triton, TORCHINDUCTOR_CACHE_DIR: /tmp/inductor}} in the job",
        )
    if home is not None and home.mount != disk.mount and "ro" in home.options:
        yield case.warn(
            "home",
            f"the home folder {case.facts.home} is read-only: libraries keep their caches there",
            "env: {set: {HOME: …, HF_HOME: …}} in the job, to a folder that can be written",
        )


def _memory(case: _Case) -> Iterator[Verdict]:
    available = case.facts.more.memory_available
    if available is not None and available < LEAST_MEMORY:
        total = case.facts.memory / 1e9
        yield case.warn(
            "memory",
            f"only {available / 1e9:.1f} of {total:.1f} GB memory is available",
            f"see who has it: llmctl hosts exec --limit {case.host.name} -- ps aux --sort -rss",
        )


def _cgroup(case: _Case) -> Iterator[Verdict]:
    group, name = case.facts.more.cgroup, case.host.name
    if group.memory is not None and group.memory < case.ranks * LEAST_MEMORY_PER_RANK:
        yield case.warn(
            "cgroup",
            f"its control group allows {group.memory / 1e9:.1f} GB for {case.ranks} ranks",
            f"raise the container's memory limit, or set `slots:` for {name} in hosts.yaml",
        )
    cores = min((c for c in (group.cpus, group.cpuset) if c is not None), default=None)
    if cores is not None and cores < case.ranks and cores < case.facts.cores:
        yield case.warn(
            "cgroup",
            f"its control group allows {cores:g} of {case.facts.cores} cores for {case.ranks} ranks",
            f"raise the container's CPU limit, or set `slots:` for {name} in hosts.yaml",
        )


def _ulimits(case: _Case) -> Iterator[Verdict]:
    limits, name = case.facts.more.limits, case.host.name
    if limits.nofile is not None and limits.nofile < LEAST_NOFILE:
        yield case.warn(
            "nofile",
            f"only {limits.nofile} open files are allowed; data loaders and sockets of many ranks need more",
            f"on {name}: raise `nofile` in /etc/security/limits.conf (or the container's --ulimit)",
        )
    if limits.nproc is not None and limits.nproc < LEAST_NPROC:
        yield case.warn(
            "nproc",
            f"only {limits.nproc} processes and threads are allowed for {case.facts.more.user or 'the user'}",
            f"on {name}: raise `nproc` in /etc/security/limits.conf",
        )
    if case.facts.more.fabric and limits.memlock is not None and limits.memlock < 64 << 20:
        yield case.warn(
            "memlock",
            f"only {limits.memlock >> 10} kB may be locked in memory: RDMA can't register its buffers",
            f"on {name}: `* - memlock unlimited` in /etc/security/limits.conf",
        )


def _shm(case: _Case) -> Iterator[Verdict]:
    disk = case.facts.more.disk("/dev/shm")  # noqa: S108 - a fact about the host, nothing is put there
    if disk is not None and disk.size < LEAST_SHM:
        yield case.graver(
            case.uses_gpus and case.ranks > 1,
            "shm",
            f"{disk.path} has {disk.size >> 20} MB: NCCL and data loaders need more",
            f"on {case.host.name}: mount -o remount,size=50% {disk.path} (a container: --shm-size)",
        )


def _name(case: _Case) -> Iterator[Verdict]:
    found = case.facts.more.resolves_to
    name = case.facts.more.hostname
    if found is None or not name or case.host.is_local:
        return
    fix = f"on {case.host.name}: give {name} its real address in /etc/hosts"
    if not found:
        yield case.warn("name", f"its own name {name} does not resolve: own launchers may fail", fix)
    elif all(_is_loopback(address) for address in found):
        yield case.warn(
            "name", f"its own name {name} is {found[0]}: launchers of your own may hang on that", fix
        )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _firewall(case: _Case) -> Iterator[Verdict]:
    if case.facts.more.firewall.drops_input and not case.host.is_local:
        yield case.warn(
            "firewall",
            "its packet filter drops what no rule lets in: ranks of other hosts may not reach it",
            f"on {case.host.name}: allow TCP from the other hosts of the pool",
        )


def _driver(case: _Case) -> Iterator[Verdict]:
    facts, name = case.facts, case.host.name
    if facts.more.gpu_error and (not facts.gpus or "GPU" in facts.more.gpu_error):
        yield case.graver(
            case.uses_gpus,
            "driver",
            f"nvidia-smi: {facts.more.gpu_error}",
            _driver_hint(facts.more.gpu_error, name),
        )
    python = facts.python
    nvidia = [gpu for gpu in facts.gpus if gpu.vendor == "nvidia"]
    if not nvidia or python is None or python.torch is None:
        return
    if python.cuda is None and "+cpu" in python.torch:
        yield case.graver(
            case.uses_gpus,
            "torch",
            f"torch {python.torch} is built for CPUs and can't use the {len(nvidia)} GPUs",
            f"on {name}: install a CUDA build, or set `python:` for it in hosts.yaml",
        )
    wanted = OLDEST_DRIVER.get(_major(python.cuda))
    if wanted and 0 < _major(nvidia[0].driver) < wanted:
        yield case.graver(
            case.uses_gpus,
            "driver",
            f"driver {nvidia[0].driver} is too old for torch's CUDA {python.cuda} ({wanted} or newer)",
            f"upgrade the driver of {name}, or install torch for an older CUDA",
        )


def _driver_hint(error: str, name: str) -> str:
    if "version mismatch" in error.lower():
        return f"reboot {name}: the driver was upgraded while the old one is still loaded"
    return f"reboot {name}, or look: nvidia-smi; dmesg | grep NVRM. On CPUs instead: train.backend: gloo"


def _major(version: str | None) -> int:
    head = (version or "").partition(".")[0]
    return int(head) if head.isdigit() else 0


def _gpu_health(case: _Case) -> Iterator[Verdict]:
    name = case.host.name
    for gpu in case.facts.gpus:
        what = f"GPU {gpu.index} ({gpu.model})"
        if gpu.lost:
            yield case.graver(
                case.uses_gpus, "gpu", f"{what} does not answer its driver", f"reset it, or reboot {name}"
            )
        if gpu.ecc_errors:
            yield case.warn(
                "ecc",
                f"{what} had {gpu.ecc_errors} uncorrected memory errors since boot",
                f"reset it (nvidia-smi -r -i {gpu.index}); if they come back, have it replaced",
            )
        if gpu.retired:
            yield case.warn("ecc", f"{what} has memory pages that wait to be retired", f"reboot {name}")
        if gpu.mig:
            yield case.warn(
                "mig",
                f"{what} is cut into MIG slices, which NCCL can't join into one job",
                f"nvidia-smi -i {gpu.index} -mig 0, or one rank per slice with CUDA_VISIBLE_DEVICES",
            )
        if gpu.temperature is not None and gpu.temperature >= HOT_C:
            yield case.warn(
                "heat", f"{what} is at {gpu.temperature} °C and slows down", "look at its cooling"
            )
    yield from _xids(case)


def _xids(case: _Case) -> Iterator[Verdict]:
    for xid in case.facts.more.xids:
        if xid.code in SICK_XIDS:
            yield case.graver(
                case.uses_gpus and xid.code in DEAD_XIDS,
                "xid",
                f"the driver logged Xid {xid.code} for {xid.pci}: {xid.text or 'no words'}",
                f"reset the GPU or reboot {case.host.name}; if it comes back, have the GPU looked at",
            )


def _foreign(case: _Case) -> Iterator[Verdict]:
    by_gpu: dict[str, list[GpuProcess]] = {}
    for process in case.facts.more.gpu_processes:
        by_gpu.setdefault(process.gpu, []).append(process)
    for gpu in case.facts.gpus:
        held = by_gpu.get(gpu.uuid or "", [])
        if held:
            yield from _held(case, gpu, held)
        elif gpu.vendor == "nvidia" and gpu.used and gpu.memory and gpu.used > gpu.memory * FOREIGN_UNFIT:
            held_gb = f"{gpu.used / 1e9:.1f} of {gpu.memory / 1e9:.1f} GB"
            yield case.graver(
                case.uses_gpus,
                "foreign",
                f"GPU {gpu.index}: {held_gb} are in use, by whom can't be seen",
                f"on {case.host.name}: look for containers and leftovers; nvidia-smi -r frees an idle GPU",
            )


def _held(case: _Case, gpu: Gpu, held: list[GpuProcess]) -> Iterator[Verdict]:
    memory = sum(process.memory or 0 for process in held)
    if memory < FOREIGN_WARN and not gpu.exclusive:
        return
    first = held[0]
    who = f"run {first.run}" if first.run else f"{first.name or 'a process'} of {first.user or 'someone'}"
    more = f" and {len(held) - 1} more" if len(held) > 1 else ""
    fix = f"llmctl stop {first.run}" if first.run else f"on {case.host.name}: kill {first.pid}, if it may end"
    yield case.graver(
        case.uses_gpus and (gpu.exclusive or (gpu.memory > 0 and memory > gpu.memory * FOREIGN_UNFIT)),
        "foreign",
        f"GPU {gpu.index}: {who} (pid {first.pid}){more} holds {memory / 1e9:.1f} GB"
        + (", and the GPU takes one process only" if gpu.exclusive else ""),
        fix,
    )


RULES: tuple[Callable[[_Case], Iterator[Verdict]], ...] = (
    _drained,
    _clock,
    _disk,
    _memory,
    _cgroup,
    _ulimits,
    _shm,
    _name,
    _firewall,
    _driver,
    _gpu_health,
    _foreign,
)
