"""Pure parsers of what the kernel says: CPU, control groups, ulimits, disks, clock, the drain marker."""

from __future__ import annotations

import math
import re

from llmctl.controller.probe.lines import below_unlimited, blocks, number, pairs, whole
from llmctl.controller.probe.machine import CgroupLimits, Cpu, Disk, Limits
from llmctl.errors import IntegrityError
from llmctl.wire import codec
from llmctl.wire.records import Drained

_IMPLEMENTER = {"0x41": "ARM", "0x4e": "NVIDIA", "0x61": "Apple", "0xc0": "Ampere", "0x48": "HiSilicon"}
_ARM_PART = {"0xd0c": "Neoverse-N1", "0xd40": "Neoverse-V1", "0xd49": "Neoverse-N2", "0xd4f": "Neoverse-V2"}


def cpu(text: str) -> Cpu:
    """From /proc/cpuinfo (its first block is enough) with `online` (`0-63`) and `smt` lines below.

    x86 tells cores and threads per socket; ARM tells neither, but whether threads share cores.
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    told = pairs(text)
    logical = cpu_list(told.get("online", "")) or len(re.findall(r"(?m)^processor\s*:", text)) or None
    return Cpu(model=_model(fields), logical=logical, physical=_physical(fields, told.get("smt"), logical))


def _model(fields: dict[str, str]) -> str | None:
    named = fields.get("model name") or fields.get("cpu model") or fields.get("Model")
    if named:
        return " ".join(named.split())
    part = fields.get("CPU part")
    if part is None:
        return fields.get("cpu")  # POWER
    implementer = fields.get("CPU implementer", "")
    return f"{_IMPLEMENTER.get(implementer, implementer)} {_ARM_PART.get(part, part)}".strip()


def _physical(fields: dict[str, str], smt: str | None, logical: int | None) -> int | None:
    cores, siblings = whole(fields.get("cpu cores")), whole(fields.get("siblings"))
    if logical and cores and siblings:
        return max(1, logical * cores // siblings)
    return logical if smt == "0" else None


def cgroup(text: str) -> CgroupLimits:
    """The tightest of `path/file<tab>value` lines, over the login's own group and all its ancestors."""
    files: dict[str, list[tuple[str, str]]] = {}
    for line in text.splitlines():
        path, _, value = line.partition("\t")
        folder, _, name = path.rpartition("/")
        files.setdefault(name, []).append((folder, value.strip()))
    memory = [whole(v) for n in ("memory.max", "memory.limit_in_bytes") for _, v in files.get(n, [])]
    sets = [v for n in ("cpuset.cpus.effective", "cpuset.effective_cpus") for _, v in files.get(n, [])]
    quotas = [_cpu_max(v) for _, v in files.get("cpu.max", [])] + _cpu_quotas(files)
    return CgroupLimits(
        cpus=min((quota for quota in quotas if quota is not None), default=None),
        cpuset=min((count for count in map(cpu_list, sets) if count), default=None),
        memory=_least([below_unlimited(value) for value in memory]),
        pids=_least([whole(value) for _, value in files.get("pids.max", [])]),
    )


def _least(values: list[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _cpu_max(text: str) -> float | None:
    """`200000 100000` is two cores; `max 100000` none is set."""
    quota, _, period = text.partition(" ")
    return _ratio(whole(quota), whole(period))


def _cpu_quotas(files: dict[str, list[tuple[str, str]]]) -> list[float | None]:
    periods = dict(files.get("cpu.cfs_period_us", []))
    return [_ratio(whole(v), whole(periods.get(folder))) for folder, v in files.get("cpu.cfs_quota_us", [])]


def _ratio(quota: int | None, period: int | None) -> float | None:
    return quota / period if quota and quota > 0 and period else None


def cpu_list(text: str) -> int:
    """How many CPUs `0-3,8,10-11` names."""
    count = 0
    for part in filter(None, text.replace(" ", "").split(",")):
        first, _, last = part.partition("-")
        low, high = whole(first), whole(last or first)
        if low is None or high is None:
            return 0
        count += high - low + 1
    return count


def limits(text: str) -> Limits:
    """From /proc/self/limits, whose columns are parted by two spaces or more."""
    rows = {fields[0]: fields for line in text.splitlines() if len(fields := re.split(r" {2,}", line)) >= 3}

    def at(name: str, column: int) -> int | None:
        return whole(rows[name][column]) if name in rows else None

    return Limits(
        nofile=at("Max open files", 1),
        nofile_hard=at("Max open files", 2),
        memlock=at("Max locked memory", 1),
        nproc=at("Max processes", 1),
    )


def disks(text: str, mounts_text: str, inodes_text: str) -> tuple[Disk, ...]:
    """One Disk per `path` line, from the `df -Pk` below it; kind and options by its mount point.

    Inodes (from `df -Pi`) are those of the first path: the workdir.
    """
    mounted = _mounts(mounts_text)
    found: list[Disk] = []
    for path, lines in blocks(text, "path"):
        row = df_row("\n".join(lines))
        if row is None:
            continue
        source, size, free, mount = row
        kind, options = mounted.get(mount, (None, ()))
        inodes = inodes_free(inodes_text) if not found else None
        found.append(
            Disk(
                path=path,
                source=source,
                size=size << 10,
                free=free << 10,
                mount=mount,
                kind=kind,
                options=options,
                inodes=inodes,
            )
        )
    return tuple(found)


def df_row(text: str) -> tuple[str, int, int, str] | None:
    """(source, blocks, free blocks, mount point) of the last line of `df -P`; names may contain spaces."""
    lines = text.splitlines()
    match = re.match(r"(.+?)\s+(\d+)\s+(\d+)\s+(-?\d+)\s+(?:\d+%|-)\s+(.+)\Z", lines[-1]) if lines else None
    if match is None:
        return None
    return match[1], int(match[2]), max(0, int(match[4])), match[5]


def inodes_free(text: str) -> int | None:
    """Free inodes; None where the file system has no fixed number (btrfs, many network ones: 0 in all)."""
    row = df_row(text)
    return row[2] if row and row[1] > 0 else None


def _mounts(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Mount point -> (type, options); the last mount on a point is the one that is seen."""
    found = {}
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) >= 4:
            point = fields[1].replace("\\040", " ")
            found[point] = (fields[2], tuple(fields[3].split(",")))
    return found


def kilobytes(text: str, key: str) -> int | None:
    """Bytes of `key: 123 kB` in /proc/meminfo."""
    match = re.search(rf"(?m)^{key}:\s+(\d+) kB", text)
    return int(match[1]) << 10 if match else None


def resolved(text: str) -> tuple[str, ...] | None:
    """Addresses that `getent ahostsv4` gave; () where it said none; None where it could not be asked."""
    if not text:
        return None
    found = (line.split() for line in text.splitlines())
    return tuple(dict.fromkeys(fields[0] for fields in found if fields and fields[0][0].isdigit()))


def unix_time(text: str) -> float | None:
    """`1700000000.123456789`; a `date` without %N leaves it, or an N, behind the point."""
    match = re.match(r"\s*(\d+)(\.\d+)?", text)
    return number(match[0]) if match else None


def ahead(sent: float, arrived: float, started: float, ended: float) -> tuple[float, float]:
    """(seconds that the other clock is ahead, how wrong that may be), as NTP reckons from four times.

    Args:
        sent, arrived: our clock when the question left and the answer was here.
        started, ended: the host's clock at the beginning and the end of its work.
    """
    skew = ((started - sent) + (ended - arrived)) / 2
    error = max(0.0, (arrived - sent) - (ended - started)) / 2
    return (skew, error) if math.isfinite(skew) else (0.0, math.inf)


def drained(text: str) -> Drained | None:
    """The marker of `hosts drain`; a damaged one still keeps runs off."""
    if not text:
        return None
    try:
        return codec.loads(Drained, text)
    except IntegrityError:
        return Drained(reason="(its marker can't be read)")
