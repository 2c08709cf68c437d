"""N SSH hosts on this machine: `with Lab.up(2) as lab:` gives node0, node1 and a client network.

Every host has its own network, mount, pid, uts and ipc namespaces, an overlay root (what it writes stays
its own; the machine's /root, /home, /tmp and the checkout are hidden) and an sshd on port 22 with its own
key. The bridge and the client live in a `ctl` network namespace: nothing is added to the machine's own
network and no packet can leave. Users `root` and `trainer` (uid 2000) accept the lab's key.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from tests.lab import kernel

REPO = Path(__file__).resolve().parents[2]
BOOT = Path(__file__).with_name("boot.py")
HIDDEN = ("root", "home", "tmp", "run", "srv", "mnt")
NET = "10.77.0"
WAIT_S = 30.0


class LabError(RuntimeError):
    """The lab itself could not do what it was asked."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """What the wires of the hosts are like."""

    delay_ms: float = 0.0
    loss_pct: float = 0.0
    rate_mbit: float | None = None


@dataclass(kw_only=True)
class Machine:
    """One process that is a host, a link or the client's network."""

    pid: int
    start: str
    supervisor: subprocess.Popen[str]
    cut: str = ""

    @property
    def alive(self) -> bool:
        return kernel.start_time(self.pid) == self.start


@dataclass(kw_only=True)
class Lab:
    """The running lab. Not thread-safe: one test steers it at a time.

    Attributes:
        dir: keys, disks, ssh_config and known_hosts of this lab; unique per lab.
        ips: host name -> address.
    """

    dir: Path
    ips: dict[str, str]
    link: Link = field(default_factory=Link)
    mem_mib: int | None = None
    cpus: float | None = None
    readonly: tuple[str, ...] = ()
    _machines: dict[str, Machine] = field(default_factory=dict)
    _cuts: dict[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def up(cls, count: int, **options: Any) -> Lab:
        """Boot `count` hosts at once; options are the fields link, mem_mib, cpus, readonly and dir."""
        folder = options.pop("dir", None) or Path(tempfile.mkdtemp(prefix="llmctl-lab-"))
        readonly = (*default_readonly(), *options.pop("readonly", ()))
        ips = {f"node{i}": f"{NET}.{11 + i}" for i in range(count)}
        lab = cls(dir=folder, ips=ips, readonly=readonly, **options)
        try:
            lab._prepare()
            for name in ips:
                lab.start(name)
        except BaseException:
            lab.down()
            raise
        return lab

    @property
    def names(self) -> list[str]:
        return list(self.ips)

    @property
    def ssh_config(self) -> Path:
        return self.dir / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.dir / "known_hosts"

    @property
    def identity(self) -> Path:
        return self.dir / "keys" / "id_ed25519"

    @property
    def net(self) -> str:
        """Path of the client's network namespace."""
        return f"/proc/{self._machines['ctl'].pid}/ns/net"

    # The client's side

    def inside(self) -> AbstractContextManager[None]:
        """This thread, and threads that it starts meanwhile, open their sockets in the client's network."""
        return kernel.inside_net(self.net)

    def client(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, **kw: Any
    ) -> subprocess.CompletedProcess[Any]:
        """subprocess.run in the client's network; `env` is added to ours and to LLMCTL_SSH_CONFIG."""
        return subprocess.run(self._client_argv(argv), env=self._client_env(env), **kw)  # noqa: PLW1510

    def popen(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, **kw: Any
    ) -> subprocess.Popen[Any]:
        """subprocess.Popen in the client's network; its pid is the command's own."""
        return subprocess.Popen(self._client_argv(argv), env=self._client_env(env), **kw)

    def on_host(self, name: str, argv: Sequence[str | Path], **kw: Any) -> subprocess.CompletedProcess[Any]:
        """subprocess.run on the host itself, beside SSH: to look at the truth, or to break things."""
        target = [
            "nsenter",
            "-t",
            str(self._machines[name].pid),
            "-m",
            "-u",
            "-i",
            "-n",
            "-p",
            "--wdns=/",
            "--",
        ]
        return subprocess.run([*target, *map(str, argv)], **kw)  # noqa: PLW1510

    def pid(self, name: str) -> int:
        """The host's PID 1 as this machine counts."""
        return self._machines[name].pid

    def path(self, name: str, path: str) -> Path:
        """A file of a running host, seen from this machine."""
        return Path(f"/proc/{self._machines[name].pid}/root") / path.lstrip("/")

    def _client_argv(self, argv: Sequence[str | Path]) -> list[str]:
        return ["nsenter", f"--net={self.net}", "--", *map(str, argv)]

    def _client_env(self, env: Mapping[str, str] | None) -> dict[str, str]:
        return {**os.environ, "LLMCTL_SSH_CONFIG": str(self.ssh_config), **(env or {})}

    # Faults

    def partition(
        self,
        name: str,
        *,
        between: Literal["all", "ctl", "peers"] = "all",
        direction: Literal["both", "in", "out"] = "both",
    ) -> None:
        """Drop the host's packets silently: no reset, no ICMP, as when a cable is pulled."""
        self._cuts[name] = (between, direction)
        self._apply_cuts()

    def heal(self, name: str) -> None:
        self._cuts.pop(name, None)
        self._apply_cuts()

    def kill(self, name: str) -> None:
        """SIGKILL every process of the host; its kernel still says goodbye (FIN or RST)."""
        self._end(f"link-{name}")
        if self.is_up(name):
            self.thaw(name)
        if self._end(name):
            self._ctl("ip", "link", "del", f"v-{name}", check=False)
            self._cgroup(name).remove()

    def poweroff(self, name: str) -> None:
        """Gone without a word: packets are dropped first."""
        self.partition(name)
        self.kill(name)

    @property
    def shared(self) -> Path:
        """What every host sees as /mnt/shared, as a network file system would be."""
        folder = self.dir / "shared"
        folder.mkdir(exist_ok=True)
        return folder

    def freeze(self, name: str) -> None:
        """A hung host: TCP stays up, nobody answers."""
        self._cgroup(name).freeze(True)

    def thaw(self, name: str) -> None:
        self._cgroup(name).freeze(False)

    def is_up(self, name: str) -> bool:
        return name in self._machines and self._machines[name].alive

    def start(self, name: str, *, wipe: bool = False, new_key: bool = False, trust: bool = True) -> None:
        """Boot the host on the same disk, or a clean one, or with a new host key (known when `trust`)."""
        if self.is_up(name):
            raise LabError(f"{name} is up")
        self.heal(name)
        if wipe:
            shutil.rmtree(self.dir / "disks" / name, ignore_errors=True)
        self._make_host_key(name, new=new_key)
        shutil.rmtree(self.dir / "disks" / name / "private/run", ignore_errors=True)
        host = self._boot("host", name, self._host_settings(name))
        self._cgroup(name).add(host.pid, mem_mib=self.mem_mib, cpus=self.cpus)
        self._connect(name, host)
        self._go(host)
        if trust:
            self._write_client_files()
        self._await_banner(name)

    def restore(self) -> None:
        """Undo every fault: heal, thaw and start what is down. Disks keep what they have."""
        for name in self.ips:
            if not self.is_up(name):
                self.kill(name)
                self.start(name)
            self.thaw(name)
        if self._cuts:
            self._cuts.clear()
            self._apply_cuts()

    def down(self) -> None:
        """End every process of the lab, by pid, and remove its files."""
        for name in self.ips:
            self.kill(name)
        self._end("ctl")
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # Inside

    def _prepare(self) -> None:
        for folder in ("keys", "disks"):
            (self.dir / folder).mkdir(parents=True, exist_ok=True)
        make_key(self.identity, "lab")
        self._go(self._boot("ctl", "ctl", {"ip": f"{NET}.1"}))

    def _host_settings(self, name: str) -> dict[str, Any]:
        hidden = [*HIDDEN]
        if REPO.parts[1] not in ("usr", "opt", "var", *HIDDEN):
            hidden.append(REPO.parts[1])
        return {
            "name": name,
            "ip": self.ips[name],
            "disk": str(self.dir / "disks" / name),
            "hidden": hidden,
            "readonly": list(self.readonly),
            "shared": str(self.shared),
            "hosts": "".join(f"{ip} {host}\n" for host, ip in self.ips.items()) + f"{NET}.1 ctl\n",
            "host_key": (self.dir / "keys" / f"host_{name}").read_text(),
            "client_key": self.identity.with_suffix(".pub").read_text(),
        }

    def _boot(self, role: str, name: str, settings: dict[str, Any]) -> Machine:
        """Start boot.py up to the point where it waits for its network."""
        file = self.dir / f"{name}.json"
        file.write_text(json.dumps({"lifeline": True, **settings}))
        argv = [sys.executable, "-I", "-S", str(BOOT), role, str(file)]
        log = (self.dir / f"{name}.log").open("a")
        with log:
            process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        said = _pipe(process.stdout).readline().split()
        if said[:1] != ["pid"]:
            raise LabError(f"{name}: no namespaces: {(self.dir / f'{name}.log').read_text().strip()}")
        pid = int(said[1])
        machine = Machine(pid=pid, start=kernel.start_time(pid) or "", supervisor=process)
        self._machines[name] = machine
        booted = _pipe(process.stdout).readline().strip()
        if booted != "booted":
            raise LabError(f"{name} did not boot: {booted}")
        return machine

    def _go(self, machine: Machine) -> None:
        stdin = _pipe(machine.supervisor.stdin)
        stdin.write("go\n")
        stdin.flush()

    def _connect(self, name: str, host: Machine) -> None:
        """A wire from the bridge to the host's eth0."""
        bridge_end = f"v-{name}"
        if self.link.delay_ms or self.link.loss_pct:
            settings = {
                "ctl_pid": self._machines["ctl"].pid,
                "host_pid": host.pid,
                "bridge_end": bridge_end,
                "delay_ms": self.link.delay_ms,
                "loss_pct": self.link.loss_pct,
            }
            self._go(self._boot("link", f"link-{name}", settings))
        else:
            # A machine keeps its MAC over a reboot; else peers send to the old one until ARP forgets it.
            mac = "02:00:" + ":".join(f"{int(part):02x}" for part in self.ips[name].split("."))
            veth = ("type", "veth", "peer", "name", "eth0", "address", mac, "netns", str(host.pid))
            self._ctl("ip", "link", "add", bridge_end, *veth)
        self._ctl("ip", "link", "set", bridge_end, "master", "br0", "up")
        if self.link.rate_mbit:
            shape = ("root", "tbf", "rate", f"{self.link.rate_mbit}mbit", "burst", "128kb", "latency", "50ms")
            self._ctl("tc", "qdisc", "add", "dev", bridge_end, *shape)

    def _await_banner(self, name: str) -> None:
        deadline = time.monotonic() + WAIT_S
        with self.inside():
            while time.monotonic() < deadline:
                if has_banner(self.ips[name]):
                    return
                time.sleep(0.02)
        raise LabError(f"{name}: no sshd banner within {WAIT_S:.0f} s")

    def _make_host_key(self, name: str, *, new: bool) -> None:
        key = self.dir / "keys" / f"host_{name}"
        if new:
            key.unlink(missing_ok=True)
            key.with_suffix(".pub").unlink(missing_ok=True)
        make_key(key, name)

    def _write_client_files(self) -> None:
        known, config = "", ""
        for name, ip in self.ips.items():
            public = self.dir / "keys" / f"host_{name}.pub"
            if public.exists():
                known += f"{name},{ip} {' '.join(public.read_text().split()[:2])}\n"
                config += f"Host {name}\n  HostName {ip}\n"
        config += (
            f"Host *\n  User root\n  IdentityFile {self.identity}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
            f"  StrictHostKeyChecking yes\n  ControlPath {self.dir}/cm-%C\n"
        )
        self.known_hosts.write_text(known)
        self.ssh_config.write_text(config)

    def _apply_cuts(self) -> None:
        rules: dict[str, list[str]] = {"forward": [], "input": [], "output": []}
        for name, (between, direction) in self._cuts.items():
            ways = {"out": f'iifname "v-{name}" drop', "in": f'oifname "v-{name}" drop'}
            if direction != "both":
                ways = {direction: ways[direction]}
            if between in ("all", "peers"):
                rules["forward"] += ways.values()
            if between in ("all", "ctl"):
                rules["input"] += [ways["out"]] if "out" in ways else []
                rules["output"] += [ways["in"]] if "in" in ways else []
        text = "table bridge lab\ndelete table bridge lab\ntable bridge lab {\n"
        for hook, lines in rules.items():
            text += f" chain {hook} {{ type filter hook {hook} priority 0;\n" + "\n".join(lines) + "\n }\n"
        self._ctl("nft", "-f", "-", input=text + "}\n")

    def _ctl(self, *argv: str, check: bool = True, input: str | None = None) -> None:
        done = subprocess.run(
            self._client_argv(argv), input=input, text=True, capture_output=True, check=False
        )
        if check and done.returncode:
            raise LabError(f"{' '.join(argv)}: {done.stderr.strip()}")

    def _cgroup(self, name: str) -> kernel.Cgroup:
        return kernel.Cgroup(f"{self.dir.name}-{name}")

    def _end(self, name: str) -> bool:
        """SIGKILL one machine by its supervisor's lifeline; True if there was one."""
        machine = self._machines.pop(name, None)
        if machine is None:
            return False
        _pipe(machine.supervisor.stdin).close()
        machine.supervisor.wait(WAIT_S)
        _pipe(machine.supervisor.stdout).close()
        return True


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise LabError("the boot process was started without pipes")
    return stream


def has_banner(ip: str) -> bool:
    """An sshd answers there."""
    try:
        with socket.create_connection((ip, 22), 2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def make_key(path: Path, comment: str, *, kind: str = "ed25519") -> None:
    """An SSH key pair, unless it is there already."""
    if not path.exists():
        argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", comment, "-f", str(path)]
        subprocess.run(argv, check=True)


def default_readonly() -> tuple[str, ...]:
    """What tests want at the same path on a host: this interpreter, its packages and the checkout."""
    wanted = dict.fromkeys((sys.prefix, sys.base_prefix, str(REPO)))
    return tuple(path for path in wanted if path != "/usr")


def missing() -> str | None:
    """Why this machine can't have a lab, or None."""
    if os.geteuid() != 0:
        return "needs root for namespaces"
    for tool in ("/usr/sbin/sshd", "nsenter", "ip", "nft", "ssh-keygen"):
        if shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
            return f"{tool} is not installed"
    return None


@contextmanager
def try_up(count: int, **options: Any) -> Iterator[Lab | str]:
    """The lab, or the reason why the kernel refused it."""
    reason = missing()
    if reason:
        yield reason
        return
    try:
        lab = Lab.up(count, **options)
    except (LabError, OSError) as error:
        yield f"the kernel refused: {error}"
        return
    with lab:
        yield lab
