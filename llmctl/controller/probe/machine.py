"""What a host is made of: the facts beyond those that a plan needs. Values only; a fact that can't be had is
None or empty, never an error."""

from __future__ import annotations

from dataclasses import dataclass

from llmctl.wire.records import Drained


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """`logical` counts hardware threads, `physical` cores; None where the kernel doesn't say."""

    model: str | None = None
    logical: int | None = None
    physical: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupLimits:
    """The tightest limit of the login's control group and its ancestors; None: none is set.

    Attributes:
        cpus: cores' worth of CPU time; cpuset: number of cores it may run on.
        memory: bytes. pids: processes and threads.
    """

    cpus: float | None = None
    cpuset: int | None = None
    memory: int | None = None
    pids: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Soft ulimits of the login, `nofile_hard` what it may raise itself to; None: unlimited or unknown.

    `memlock` is in bytes.
    """

    nofile: int | None = None
    nofile_hard: int | None = None
    memlock: int | None = None
    nproc: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system below one path; sizes in bytes, `inodes` free ones, None where it has no such count."""

    path: str
    source: str
    size: int
    free: int
    mount: str
    kind: str | None = None
    options: tuple[str, ...] = ()
    inodes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One network interface. `speed` in Mbit/s; `addresses` as `10.0.0.5/24`, both families."""

    name: str
    mtu: int | None = None
    speed: int | None = None
    state: str = "unknown"
    kind: str = "ethernet"
    mac: str | None = None
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricPort:
    """One port of an RDMA adapter: `rate` in Gbit/s, `layer` InfiniBand or Ethernet (RoCE)."""

    device: str
    port: int
    state: str
    rate: float | None = None
    layer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPython:
    """An interpreter on the host, looked at without starting it more than once, and never its torch."""

    path: str
    version: str
    venv: bool = False
    torch: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundEnv:
    """An environment that `hosts bootstrap` made for `request`. `usable`: its interpreter is still there.

    `path` is its interpreter, `python` that one's version, `build` that of its torch.
    """

    request: str
    hash: str
    path: str
    python: str
    build: str
    usable: bool
    bytes: int = 0
    packages: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds GPU memory (bytes; None: the driver doesn't say). `run`: of which llmctl run."""

    gpu: str
    pid: int
    memory: int | None = None
    name: str = ""
    user: str | None = None
    run: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Xid:
    """One fault that the NVIDIA driver logged since boot: its number and its words."""

    pci: str
    code: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Firewall:
    """What of a packet filter can be seen without root.

    Attributes:
        tools: of nft, iptables, ufw, firewall-cmd, those that are installed.
        drops_input: True: the policy for incoming packets is to drop; None: it can't be read.
    """

    tools: tuple[str, ...] = ()
    drops_input: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """How far the host's clock is ahead of ours, seconds, and by how much that may be wrong (round trip)."""

    ahead: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Everything about a host that no plan depends on.

    Attributes:
        machine_id, boot_id: systemd's and the kernel's; the first survives a reboot, the second doesn't.
        workdir_id: `device:inode` of the workdir, tells whether two hosts share one.
        resolves_to: addresses that the host's own name has there; empty: the name does not resolve.
        gpu_error: what nvidia-smi said instead of listing GPUs.
        cuda_driver: newest CUDA that the driver supports. cuda: toolkits installed.
        nccl: a system-wide libnccl; torch usually brings its own.
        data: checksums of the data files that were asked for, in order; empty text: not readable.
    """

    hostname: str = ""
    resolves_to: tuple[str, ...] | None = None
    machine_id: str | None = None
    boot_id: str | None = None
    uptime_s: float | None = None
    user: str | None = None
    workdir_id: str | None = None
    skew: Skew | None = None
    cpu: Cpu = Cpu()
    memory_available: int | None = None
    swap: int | None = None
    cgroup: CgroupLimits = CgroupLimits()
    limits: Limits = Limits()
    disks: tuple[Disk, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    fabric: tuple[FabricPort, ...] = ()
    gpu_error: str | None = None
    gpu_processes: tuple[GpuProcess, ...] = ()
    xids: tuple[Xid, ...] = ()
    cuda_driver: str | None = None
    cuda: tuple[str, ...] = ()
    nccl: str | None = None
    pythons: tuple[FoundPython, ...] = ()
    virtualisation: str | None = None
    container: str | None = None
    runtimes: tuple[str, ...] = ()
    firewall: Firewall = Firewall()
    drained: Drained | None = None
    data: tuple[str, ...] = ()
    glibc: str = ""
    envs: tuple[FoundEnv, ...] = ()

    def disk(self, path: str) -> Disk | None:
        """The file system below `path`, where it was looked at."""
        return next((disk for disk in self.disks if disk.path == path), None)
