"""Pure parsers of a probe's sections: text in, values out. A new real-world output is a new test file."""

from __future__ import annotations

import json

from llmctl.controller.probe.facts import Address, Gpu, HostFacts, PythonFacts
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
    (system, release, machine), home, clock = _system(part["system"])
    workdir, error = _workdir(part["workdir"])
    python, python_error = _python(part["python"])
    return HostFacts(
        host=host,
        system=part["os"].strip('"') or system,
        machine=machine,
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
        gpus=gpus(part["gpus"]),
        tools=tuple(part["tools"].split()),
        agent_bytes=_number(part["agent"], 0),
        data_missing=tuple(i for i, line in enumerate(part["data"].split()) if line == "missing"),
    )


def disk_free(text: str) -> int:
    """Bytes free, from `df -Pk`: the fourth column of its last line; 0 where it says nothing."""
    lines = text.splitlines()
    fields = lines[-1].split() if len(lines) > 1 else []
    return _number(fields[3], 0) * 1024 if len(fields) >= 6 else 0


def gpus(text: str) -> tuple[Gpu, ...]:
    """GPUs from nvidia-smi's CSV; a driver that does not answer (`Failed to initialize NVML`) gives none."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[0].isdigit():
            memory = _number(fields[2], 0) * 1024 * 1024
            found.append(Gpu(index=int(fields[0]), model=fields[1], memory=memory, driver=fields[3]))
    return tuple(found)


def _system(text: str) -> tuple[tuple[str, str, str], str, float]:
    names, home, clock = text.splitlines()[:3]
    system, release, machine = names.split(" ", 2)
    return (system, release, machine), home, float(clock)


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
    ), None


def _number(text: str, otherwise: int) -> int:
    text = text.strip()
    return int(text) if text.isdigit() else otherwise
