"""What is known about a host before a plan is made: values only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its driver reports it; memory in bytes."""

    index: int
    model: str
    memory: int
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An IPv4 address of a network interface."""

    interface: str
    ip: str
    prefix: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonFacts:
    """The interpreter that the job will use.

    Attributes:
        executable: its absolute path on the host.
        torch: version of the torch that it would import, None where there is none; read, not imported.
        modules: of the optional modules that the recipe can use, those that are there.
        free_port: a TCP port outside the ephemeral range that nothing listened on when asked.
        route_interface: interface and source address towards the asked target, where one was asked.
    """

    executable: str
    version: str
    torch: str | None = None
    cuda: str | None = None
    modules: tuple[str, ...] = ()
    free_port: int = 0
    addresses: tuple[Address, ...] = ()
    route_interface: str | None = None
    route_source: str | None = None
    hostname: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """One probe of one host.

    Attributes:
        workdir: absolute path, created if it could be; `workdir_error` says why it could not.
        disk_free: bytes free where the workdir lies, for this user.
        python: None where the interpreter does not start; `python_error` says what was tried.
        clock: the host's Unix time, to show skew.
        agent_bytes: size of this llmctl's agent archive there; a shorter one was cut off and is sent again.
        data_missing: which of the data files that were asked for are not there, counted from 0.
        reached_by: the IPv4 address that this machine connects to; None for a local host.
    """

    host: str
    system: str
    machine: str
    kernel: str
    cores: int
    memory: int
    home: str
    workdir: str
    disk_free: int
    clock: float
    workdir_error: str | None = None
    python: PythonFacts | None = None
    python_error: str | None = None
    gpus: tuple[Gpu, ...] = ()
    tools: tuple[str, ...] = ()
    agent_bytes: int = 0
    data_missing: tuple[int, ...] = ()
    reached_by: str | None = None
