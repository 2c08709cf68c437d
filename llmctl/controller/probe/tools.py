"""Pure parsers of what is installed on a host: Pythons, CUDA, containers, virtualisation, packet filters."""

from __future__ import annotations

import json
import re

from llmctl.controller.probe.lines import pairs
from llmctl.controller.probe.machine import Firewall, FoundEnv, FoundPython
from llmctl.errors import IntegrityError
from llmctl.wire import codec
from llmctl.wire.environments import EnvReady


def pythons(text: str) -> tuple[FoundPython, ...]:
    """Interpreters, one per folder and version; what does not start is left out.

    `pip` lines name an ensurepip below an interpreter's own lib folder: without one it makes no environments.
    """
    found: dict[tuple[str, str], FoundPython] = {}
    for part in re.split(r"(?m)^(?=python\t)", text):
        head, *rest = part.splitlines() or [""]
        path, _, version = head.removeprefix("python\t").partition("\t")
        number = re.fullmatch(r"Python (\d+\.\d+\.\S+)", version.strip())
        if number is None:
            continue
        minor = "python" + ".".join(number[1].split(".")[:2])
        torch = [
            name[1]
            for line in rest
            if (name := re.search(r"torch-([^-/]+)\.dist-info$", line)) and f"/{minor}/" in line
        ]
        key = (path.rpartition("/")[0], number[1])
        found.setdefault(
            key,
            FoundPython(
                path=path,
                version=number[1],
                venv=any(line.startswith("pip ") and f"/{minor}/" in line for line in rest),
                torch=torch[0] if torch else None,
            ),
        )
    return tuple(found.values())


def environments(text: str) -> tuple[FoundEnv, ...]:
    """`REQUEST<tab>{ready.json}` lines, each followed by `usable` where its interpreter is there."""
    found = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        request, _, document = line.partition("\t")
        try:
            ready = codec.loads(EnvReady, document) if document else None
        except IntegrityError:
            ready = None
        if ready is not None:
            usable = lines[number + 1 : number + 2] == ["usable"]
            found.append(_environment(request, ready, usable))
    return tuple(found)


def _environment(request: str, ready: EnvReady, usable: bool) -> FoundEnv:
    return FoundEnv(
        request=request,
        hash=ready.hash,
        path=ready.python,
        python=ready.version,
        build=ready.build,
        usable=usable,
        bytes=ready.bytes,
        packages=len(ready.packages),
    )


def cuda(text: str) -> tuple[tuple[str, ...], str | None]:
    """(toolkits as `cuda 12.4` or `rocm 6.2`, version of a system-wide NCCL)."""
    names = [f"{kind} {v}" for kind, v in re.findall(r"(?m)^\S*/(cuda|rocm)-(\d[\d.]*)$", text)]
    stated = re.search(r"\{.*\}", text, re.DOTALL)
    if stated:
        try:
            version = json.loads(stated[0]).get("cuda", {}).get("version", "")
        except (ValueError, AttributeError):
            version = ""
        if version and not any(version.startswith(name.removeprefix("cuda ")) for name in names):
            names.append(f"cuda {version}")
    nccl = re.findall(r"libnccl\.so\.(\d+\.\d+\.\d+)", text)
    return tuple(dict.fromkeys(names)), (max(nccl, key=_version) if nccl else None)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def virtualisation(text: str) -> tuple[str | None, str | None]:
    """(`kvm`, `amazon` … or None on bare metal, `docker`, `podman` … or None)."""
    told = pairs(text)
    detected = next((line for line in text.splitlines() if line and "\t" not in line), None)
    marks = {"/.dockerenv": "docker", "/run/.containerenv": "podman", "/.singularity.d": "apptainer"}
    container = marks.get(told.get("container", ""))
    if detected in ("docker", "podman", "lxc", "lxc-libvirt", "systemd-nspawn", "container-other", "wsl"):
        container, detected = container or detected, None
    vendor = " ".join(filter(None, (told.get("vendor"), told.get("product"))))
    if detected in (None, "none"):
        virtual = re.search(
            r"qemu|kvm|vmware|virtual machine|amazon ec2|google compute|openstack", vendor, re.I
        )
        detected = virtual[0].lower() if virtual else None
    return detected, container


def firewall(text: str) -> Firewall:
    """Which filters are there, and whether what comes in is dropped unless a rule lets it pass."""
    tools = tuple(re.findall(r"(?m)^tool (\S+)", text))
    drops = None
    if re.search(r"(?mi)^ufw ENABLED=yes|hook input[^\n]*policy drop|^-P INPUT DROP", text):
        drops = True
    elif re.search(r"(?m)^asked$", text) and "unreadable" not in text:
        drops = False
    return Firewall(tools=tools, drops_input=drops)
