"""Values that several unit tests start from."""

from __future__ import annotations

from typing import Any

from llmctl.controller.config.models import JobFile
from llmctl.controller.config.types import Host, RunConfig, Secrets
from llmctl.controller.probe.facts import Address, HostFacts, PythonFacts


def job(**changes: Any) -> JobFile:
    return JobFile.model_validate({"version": 1, "name": "demo", "data": {"uri": "/shards"}, **changes})


def host(name: str, addr: str, **changes: Any) -> Host:
    return Host(name=name, addr=addr, **changes)


def config(*hosts: Host, **changes: Any) -> RunConfig:
    return RunConfig(hosts=hosts, job=job(**changes), base="/job", env={}, secrets=Secrets())


def facts(name: str, *addresses: tuple[str, str, int], **changes: Any) -> HostFacts:
    python = PythonFacts(
        executable="/usr/bin/python3",
        version="3.12.3",
        torch="2.13.0",
        free_port=20111,
        modules=("fsspec",),
        addresses=tuple(Address(interface=i, ip=ip, prefix=p) for i, ip, p in addresses),
    )
    values: dict[str, Any] = {
        "host": name,
        "system": "Debian",
        "machine": "x86_64",
        "kernel": "6",
        "cores": 4,
        "memory": 1 << 34,
        "home": "/home/u",
        "workdir": "/home/u/.llmctl",
        "disk_free": 1 << 36,
        "clock": 1.0,
        "python": python,
    }
    return HostFacts(**{**values, **changes})
