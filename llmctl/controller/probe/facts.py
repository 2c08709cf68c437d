"""What is known about a host before a plan is made: values only."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmctl.controller.probe.machine import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its driver reports it; memory in bytes, None where the driver does not say.

    Attributes:
        memory: 0 where unknown (integrated GPUs share the host's).
        ecc_errors: uncorrected memory errors since boot; retired: pages wait for a reboot to be retired.
        mig: MIG mode is on: the GPU is cut into slices that torch sees as devices of their own.
        exclusive: it takes one process only. lost: its driver lists it but can't reach it.
    """

    index: int
    model: str
    memory: int
    driver: str
    vendor: str = "nvidia"
    uuid: str | None = None
    pci: str | None = None
    used: int | None = None
    ecc_errors: int | None = None
    retired: bool = False
    mig: bool = False
    exclusive: bool = False
    temperature: int | None = None
    lost: bool = False


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
        nccl: version of the NCCL that torch brings.
        packages: `name version` of every installed distribution, sorted, names in lower case.
        venv: it can make virtual environments.
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
    nccl: str | None = None
    packages: tuple[str, ...] = ()
    venv: bool = False


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
        machine: the architecture, as `uname -m` has it. more: all that no plan depends on.
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
    more: Machine = field(default_factory=Machine)
