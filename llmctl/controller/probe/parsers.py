"""Pure parsers of a probe's sections: text in, values out. A new real-world output is a new test file."""

from __future__ import annotations

import json

from llmctl.controller.probe import gpus, network, system, tools
from llmctl.controller.probe.facts import Address, Gpu, HostFacts, PythonFacts
from llmctl.controller.probe.lines import number, pairs
from llmctl.controller.probe.machine import Machine
from llmctl.controller.probe.script import MARK


def sections(output: str) -> dict[str, str]:
    """The text of each section, stripped; noise before the first mark (a login banner) is dropped."""
    found: dict[str, str] = {}
    for part in output.split("\n" + MARK)[1:]:
        name, _, text = part.partition("\n")
        found[name.strip()] = text.strip()
    return found


def parse(host: str, output: str) -> HostFacts:
    """All facts of one probe.

    Raises:
        ValueError: the script did not run to its end.
    """
    part = sections(output)
    if "end" not in part:
        raise ValueError("the probe script did not run to its end")
    (kernel, release, architecture), home, clock = _system(part["system"])
    workdir, error = _workdir(part["workdir"])
    python, python_error = _python(part["python"])
    return HostFacts(
        host=host,
        system=part["os"].strip('"') or kernel,
        machine=architecture,
        kernel=release,
        cores=_number(part["cores"], 1),
        memory=_number(part["memory"].split(" ")[0], 0) * 1024,
        home=home,
        clock=clock,
        workdir=workdir,
        workdir_error=error,
        disk_free=disk_free(part["disk"]),
        python=python,
        python_error=python_error,
        gpus=_all_gpus(part),
        tools=tuple(part["tools"].split()),
        agent_bytes=_number(part["agent"], 0),
        data_missing=tuple(i for i, line in enumerate(part["data"].split()) if line == "missing"),
        more=machine(part),
    )


def disk_free(text: str) -> int:
    """Bytes free, from `df -Pk`; 0 where it says nothing: never taken for endless room."""
    row = system.df_row(text)
    return row[2] << 10 if row else 0


def _all_gpus(part: dict[str, str]) -> tuple[Gpu, ...]:
    """Answers to questions first; the table where a driver takes no questions; else AMD's."""
    return gpus.nvidia(part["gpus"]) or gpus.table_gpus(part.get("smi", "")) or gpus.amd(part.get("rocm", ""))


def machine(part: dict[str, str]) -> Machine:
    """What the sections of `machinescript` say; an empty section leaves its facts unknown."""
    text = {name: part.get(name, "") for name in (*part, *_MACHINE_SECTIONS)}
    told = pairs(text["identity"])
    toolkits, nccl = tools.cuda(text["cuda"])
    virtual, container = tools.virtualisation(text["virt"])
    return Machine(
        hostname=told.get("hostname", ""),
        resolves_to=system.resolved(text["resolves"]),
        machine_id=told.get("machine_id"),
        boot_id=told.get("boot_id"),
        uptime_s=number(told.get("uptime", "").partition(" ")[0]),
        user=told.get("user"),
        workdir_id=told.get("workdir"),
        cpu=system.cpu(text["cpu"]),
        memory_available=system.kilobytes(text["meminfo"], "MemAvailable"),
        swap=system.kilobytes(text["meminfo"], "SwapTotal"),
        cgroup=system.cgroup(text["cgroup"]),
        limits=system.limits(text["limits"]),
        disks=system.disks(text["disks"], text["mounts"], text["inodes"]),
        interfaces=network.interfaces(text["links"], text["addresses"]),
        fabric=network.fabric(text["fabric"]) or network.ibstat(text["ibstat"]),
        gpu_error=gpus.complaint(text["gpus"]),
        gpu_processes=gpus.nvidia_processes(text["gpuapps"]),
        xids=gpus.xids(text["xid"]),
        cuda_driver=gpus.table_driver(text["smi"])[1],
        cuda=toolkits,
        nccl=nccl,
        pythons=tools.pythons(text["pythons"]),
        virtualisation=virtual,
        container=container,
        runtimes=tuple(text["runtimes"].split()),
        firewall=tools.firewall(text["firewall"]),
        drained=system.drained(text["drained"]),
        data=tuple(text["sums"].splitlines()),
        glibc=text["libc"].removeprefix("glibc").strip(),
        envs=tools.environments(text["envs"]),
    )


_MACHINE_SECTIONS = (
    "identity", "resolves", "cpu", "meminfo", "cgroup", "limits", "disks", "inodes", "mounts", "links",
    "addresses", "fabric", "ibstat", "gpus", "gpuapps", "xid", "smi", "virt", "runtimes", "cuda", "firewall",
    "pythons", "drained", "sums", "libc", "envs",
)  # fmt: skip


def host_times(output: str) -> tuple[float, float] | None:
    """The host's clock at the beginning and the end of the script; None where `date` gives none."""
    part = sections(output)
    started, ended = (system.unix_time(part.get(name, "")) for name in ("clock", "clockend"))
    return (started, ended) if started is not None and ended is not None else None


def _system(text: str) -> tuple[tuple[str, str, str], str, float]:
    """Names, home and clock; 0 for a clock that `date` could not tell."""
    names, home, *clock = text.splitlines()[:3]
    kernel, release, architecture = names.split(" ", 2)
    told = system.unix_time(clock[0]) if clock else None
    return (kernel, release, architecture), home, told or 0.0


def _workdir(text: str) -> tuple[str, str | None]:
    path, *rest = text.splitlines()
    if rest and rest[-1] == "writable":
        return path, None
    return path, (rest[0] if rest else "not writable")


def _python(text: str) -> tuple[PythonFacts | None, str | None]:
    """The facts, or the interpreter's last words: `sh: python3: not found`, a loader's error ..."""
    lines = text.splitlines()
    if not lines or not lines[-1].startswith("{"):
        return None, (lines[-1] if lines else "it printed nothing")
    found = json.loads(lines[-1])
    addresses = tuple(Address(interface=n, ip=ip, prefix=p) for n, ip, p in found["addresses"])
    source = found["source"]
    by_ip = {address.ip: address.interface for address in addresses}
    return PythonFacts(
        executable=found["executable"],
        version=found["version"],
        torch=found["torch"],
        cuda=found["cuda"],
        modules=tuple(found["modules"]),
        free_port=found["free_port"],
        addresses=addresses,
        route_source=source,
        route_interface=by_ip.get(source),
        hostname=found["hostname"],
        nccl=_nccl(found.get("packages", ())),
        packages=tuple(found.get("packages", ())),
        venv=bool(found.get("venv")),
    ), None


def _nccl(packages: list[str]) -> str | None:
    """`nvidia-nccl-cu13 2.28.3`: the wheel that torch brings."""
    return next((p.split(" ")[1] for p in packages if p.startswith("nvidia-nccl-")), None)


def _number(text: str, otherwise: int) -> int:
    text = text.strip()
    return int(text) if text.isdigit() else otherwise
