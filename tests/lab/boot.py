"""Runs as its own process, one per host: makes the namespaces and the root file system, then is the host.

    boot.py ctl|host|link SETTINGS.json

Says its steps on stdout (`pid N`, then `ready`), waits for a line on stdin before the network is used,
and, with `lifeline`, ends the host when stdin reaches EOF: a killed test run leaves nothing behind.
Standard library only; started with `-S` so that it takes milliseconds.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import kernel

SSHD = """Port 22
HostKey /etc/ssh/lab_host_key
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
MaxStartups 100:30:200
MaxSessions 10
AcceptEnv LANG LC_*
AllowTcpForwarding yes
Subsystem sftp internal-sftp
"""
# bash as PID 1 reaps every orphan; the traps keep it from dying of what init gets sent.
INIT = "/usr/sbin/sshd -D -E /run/sshd.log & sleep infinity & trap : CHLD TERM HUP; while :; do wait; done"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def command(*argv: object) -> None:
    """Run a system command; its stderr is the error's text."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))}: {done.stderr.strip()}")


def say(text: str) -> None:
    print(text, flush=True)


def mount_root(disk: Path, hidden: list[str], readonly: list[str], shared: str) -> Path:
    """The machine's own root as a private overlay; `hidden` folders start empty and are kept on `disk`.
    `shared` is what all hosts see as /mnt/shared."""
    command("mount", "--make-rprivate", "/")
    upper, work, root = disk / "upper", disk / "work", disk / "root"
    try:
        mount_overlay(upper, work, root)
    except RuntimeError:  # the disk lies on a file system that overlay refuses as upper
        command("mount", "-t", "tmpfs", "-o", "size=4g", "lab", disk / "upper")
        mount_overlay(upper / "u", upper / "w", root)
    for name in hidden:
        private = disk / "private" / name
        private.mkdir(parents=True, exist_ok=True)
        private.chmod({"tmp": 0o1777, "root": 0o700}.get(name, 0o755))
        if (root / name).is_dir():
            command("mount", "--bind", private, root / name)
    for path in readonly:
        target = root / path.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        command("mount", "--bind", path, target)
        command("mount", "-o", "remount,bind,ro", target)
    (root / "mnt/shared").mkdir(exist_ok=True)
    command("mount", "--bind", shared, root / "mnt/shared")
    return root


def mount_overlay(upper: Path, work: Path, root: Path) -> None:
    for folder in (upper, work, root):
        folder.mkdir(parents=True, exist_ok=True)
    command("mount", "-t", "overlay", "lab", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", root)


def enter_root(root: Path) -> None:
    """Kernel file systems, then make `root` the only root there is."""
    command("mount", "-t", "proc", "proc", root / "proc")
    command("mount", "--rbind", "/dev", root / "dev")
    command("mount", "-t", "tmpfs", "shm", root / "dev/shm")
    command("mount", "-t", "sysfs", "-o", "ro", "sys", root / "sys")  # shows this namespace's interfaces
    os.chdir(root)
    (root / "mnt/old").mkdir(exist_ok=True)
    command("pivot_root", ".", "mnt/old")
    os.chroot(".")
    os.chdir("/")
    command("umount", "-l", "/mnt/old")


def write_identity(settings: dict[str, Any]) -> None:
    """Host name, host key, sshd_config, and the users root and trainer with the client's key."""
    socket.sethostname(settings["name"])
    Path("/etc/hostname").write_text(settings["name"] + "\n")
    Path("/etc/hosts").write_text("127.0.0.1 localhost\n" + settings["hosts"])
    Path("/etc/ssh/sshd_config").write_text(SSHD)
    for extra in Path("/etc/ssh/sshd_config.d").glob("*"):
        extra.unlink()
    key = Path("/etc/ssh/lab_host_key")
    key.write_text(settings["host_key"])
    key.chmod(0o600)
    if "\ntrainer:" not in Path("/etc/passwd").read_text():
        append("/etc/passwd", "trainer:x:2000:2000::/home/trainer:/bin/bash\n")
        append("/etc/group", "trainer:x:2000:\n")
        append("/etc/shadow", "trainer:*:19000:0:99999:7:::\n")
    for home, uid in (("/root", 0), ("/home/trainer", 2000)):
        write_authorized(Path(home), uid, settings["client_key"])
    Path("/run/sshd").mkdir(exist_ok=True)


def append(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(text)


def write_authorized(home: Path, uid: int, public_key: str) -> None:
    folder = home / ".ssh"
    folder.mkdir(parents=True, exist_ok=True)
    keys = folder / "authorized_keys"
    keys.write_text(public_key)
    folder.chmod(0o700)
    keys.chmod(0o600)
    for path in (home, folder, keys):
        os.chown(path, uid, uid)


def be_host(settings: dict[str, Any]) -> None:
    """PID 1 of the new host: never returns, becomes the shell that runs sshd and reaps orphans."""
    disk, shared = Path(settings["disk"]), settings["shared"]
    enter_root(mount_root(disk, settings["hidden"], settings["readonly"], shared))
    write_identity(settings)
    say("booted")
    sys.stdin.readline()  # the parent has moved eth0 in
    command("ip", "link", "set", "lo", "up")
    command("ip", "addr", "add", f"{settings['ip']}/24", "dev", "eth0")
    command("ip", "link", "set", "eth0", "up")
    detach("/run/lab.log")
    os.execve("/bin/bash", ["labinit", "-c", INIT], {"PATH": PATH, "HOME": "/root"})  # noqa: S606


def be_ctl(settings: dict[str, Any]) -> None:
    """Holds the client's network namespace: the bridge, and the address that clients have."""
    command("ip", "link", "set", "lo", "up")
    command("ip", "link", "add", "br0", "type", "bridge")
    command("ip", "addr", "add", f"{settings['ip']}/24", "dev", "br0")
    command("ip", "link", "set", "br0", "up")
    say("booted")
    sys.stdin.readline()
    detach("/dev/null")
    while True:
        signal.pause()


def be_link(settings: dict[str, Any]) -> None:
    """A wire with delay and loss between two TAP devices, in user space: many kernels lack sch_netem."""
    kernel.enter_net(f"/proc/{settings['ctl_pid']}/ns/net")
    bridge_end, host_end = kernel.open_tap(settings["bridge_end"]), kernel.open_tap("eth0")
    command("ip", "link", "set", "eth0", "netns", settings["host_pid"])
    say("booted")
    sys.stdin.readline()
    detach("/dev/null")
    relay(bridge_end, host_end, settings["delay_ms"], settings["loss_pct"])


def relay(a: int, b: int, delay_ms: float, loss_pct: float) -> None:
    """Pass frames both ways, each `delay_ms` later, or never. Runs until killed."""
    waiting: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for source in select.select([a, b], [], [], timeout)[0]:
            for frame in frames(source):
                if random.random() * 100 >= loss_pct:  # noqa: S311 - a lossy wire, not a secret
                    count += 1
                    due = time.monotonic() + delay_ms / 1000
                    heapq.heappush(waiting, (due, count, b if source == a else a, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, target, frame = heapq.heappop(waiting)
            try:
                os.write(target, frame)
            except OSError:  # the interface is down or its queue is full: the frame is lost, as on a wire
                continue


def frames(fd: int) -> list[bytes]:
    """What has arrived, at most 64 frames so that neither direction starves."""
    got: list[bytes] = []
    while len(got) < 64:
        try:
            got.append(os.read(fd, 65536))
        except BlockingIOError:
            break
    return got


def detach(log: str) -> None:
    """Keep nothing of the parent's: neither its pipes nor its terminal."""
    null = os.open("/dev/null", os.O_RDWR)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)


ROLES = {
    "host": (be_host, kernel.NEWNS | kernel.NEWUTS | kernel.NEWIPC | kernel.NEWPID | kernel.NEWNET),
    "ctl": (be_ctl, kernel.NEWNET),
    "link": (be_link, 0),
}


def supervise(child: int) -> None:
    """Stay as the child's parent; end it when the test run's end of our stdin is closed."""
    pidfd = os.pidfd_open(child)
    ready, _, _ = select.select([0, pidfd], [], [])
    if pidfd not in ready:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitpid(child, 0)


def main() -> None:
    role, settings = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    be, flags = ROLES[role]
    os.setsid()
    kernel.unshare(flags)
    go_read, go_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(go_read, 0)
        os.close(go_read)
        os.close(go_write)
        try:
            be(settings)
        except (OSError, RuntimeError) as error:
            say(f"failed: {error}")
        return
    os.close(go_read)
    say(f"pid {child}")
    sys.stdin.readline()
    os.write(go_write, b"go\n")
    os.close(go_write)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)
    if settings["lifeline"]:
        supervise(child)


if __name__ == "__main__":
    main()
