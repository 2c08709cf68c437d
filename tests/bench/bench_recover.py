"""From a fault to the first new step: llmctl's next attempt beside `torchrun --max-restarts`, two SSH hosts.

    sudo python -m tests.bench.bench_recover [--runs 3] [--fault kill|host] [--bound 90]

`kill`: SIGKILL to rank 1. `host`: the host of rank 1 is powered off, no packet comes from it any more. Root:
the hosts are namespaces on this machine, so that all clocks are ours. One script for all ways: DDP over gloo,
a checkpoint by torch.save every 10 steps into a folder that both hosts see, and it loads the last one; rank 0
notes the clock after each step there. The ways take turns. No new step within the bound is reported as such.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.integration.cluster import Cluster, until
from tests.lab.hosts import Lab

SCRIPT = """
import os, sys, time
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

folder = sys.argv[1]
last, steps = os.path.join(folder, "last.pt"), os.path.join(folder, "steps")
dist.init_process_group("gloo")
rank, step = dist.get_rank(), 0
model = torch.nn.Linear(64, 64)
if os.path.exists(last):
    found = torch.load(last)
    model.load_state_dict(found["model"])
    step = found["step"]
model = DDP(model)
opt = torch.optim.SGD(model.parameters(), 0.1)
while True:
    opt.zero_grad()
    model(torch.randn(8, 64)).pow(2).mean().backward()
    opt.step()
    step += 1
    if rank == 0:
        with open(steps, "a") as file:
            file.write(f"{time.time()} {step} {os.getpid()}\\n")
        if step % 10 == 0:
            torch.save({"model": model.module.state_dict(), "step": step}, last + ".new")
            os.replace(last + ".new", last)
    time.sleep(0.05)
"""
PORTS = iter(range(29500, 29900))


@dataclass(frozen=True, kw_only=True)
class Step:
    at: float
    number: int
    pid: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """`seconds`: from the fault to the first new step, None: not within the bound; `lost`: done again."""

    seconds: float | None
    lost: int = 0


def by_torchrun(rendezvous: str, nodes: str) -> Callable[[Cluster, Lab, str], Iterator[None]]:
    """Two ssh, each with the torchrun command that a person would type."""

    def go(_cluster: Cluster, lab: Lab, name: str) -> Iterator[None]:
        port, master = next(PORTS), lab.ips[lab.names[0]]
        clients = []
        for rank, host in enumerate(lab.names):
            meet = f"--rdzv-backend c10d --rdzv-id {name} --rdzv-endpoint {master}:{port}"
            if rendezvous == "static":
                meet = f"--node-rank {rank} --master-addr {master} --master-port {port}"
            command = (
                f"cd /srv/hand && GLOO_SOCKET_IFNAME=eth0 OMP_NUM_THREADS=1 {sys.executable} -m "
                f"torch.distributed.run --nnodes {nodes} --nproc-per-node 1 --max-restarts 3 {meet} "
                f"train.py /mnt/shared/{name}"
            )
            argv = ["ssh", "-F", str(lab.ssh_config), host, command]
            clients.append(lab.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        try:
            yield
        finally:
            until(lambda: not end_all(name), what=f"the end of {name}")
            for client in clients:
                client.kill()
                client.wait()

    return go


def by_llmctl(**restarts: object) -> Callable[[Cluster, Lab, str], Iterator[None]]:
    """`llmctl train -d` with the default launcher."""

    def go(cluster: Cluster, _lab: Lab, name: str) -> Iterator[None]:
        train = {"args": [f"/mnt/shared/{name}"]}
        cluster.write_script(SCRIPT, train=train, restarts={"max": 3, **restarts})
        run = cluster.start()
        try:
            yield
        finally:
            cluster.run("stop", run, "--grace", "0", expect=None)
            until(lambda: not cluster.processes(run), what=f"the end of {run}")

    return go


def end_all(name: str) -> bool:
    """SIGKILL, by pid, to each process with this run's own folder on its command line; were there any?"""
    found = list(of_run(name))
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


def of_run(name: str, rank: int | None = None) -> Iterator[int]:
    """Pids, launchers included; `rank`: only that rank itself."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            entries = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"/mnt/shared/{name}".encode() not in words or b"ssh" in words[:1]:
            continue
        script = [word for word in words[1:3] if word.endswith(b"train.py")]
        if rank is None or (script and f"RANK={rank}".encode() in entries):
            yield int(folder.name)


def steps_of(folder: Path) -> list[Step]:
    try:
        lines = (folder / "steps").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    whole = [line.split() for line in lines if line.endswith("\n")]
    return [Step(at=float(at), number=int(number), pid=int(pid)) for at, number, pid in whole]


def measure(way: Callable[[Cluster, Lab, str], Iterator[None]], case: Case) -> Result:
    """One run, one fault."""
    name = f"recover-{secrets.token_hex(3)}"
    folder = case.lab.shared / name
    folder.mkdir()
    with contextmanager(way)(case.cluster, case.lab, name):
        until(lambda: len(steps_of(folder)) >= 35, within=120, what=f"steps of {name}")
        old = steps_of(folder)[-1]
        fault = time.time()
        if case.fault == "kill":
            (pid,) = of_run(name, rank=1)
            os.kill(pid, signal.SIGKILL)
        else:
            case.lab.poweroff(case.lab.names[1])
        new = first_new(folder, old.pid, fault + case.bound_s)
    if case.fault == "host":
        case.lab.restore()
    if new is None:
        return Result(seconds=None)
    before = max(step.number for step in steps_of(folder) if step.pid == old.pid)
    return Result(seconds=new.at - fault, lost=before - new.number + 1)


def first_new(folder: Path, old_pid: int, until_at: float) -> Step | None:
    while time.time() < until_at:
        found = [step for step in steps_of(folder) if step.pid != old_pid]
        if found:
            return found[0]
        time.sleep(0.05)
    return None


@dataclass(frozen=True, kw_only=True)
class Case:
    cluster: Cluster
    lab: Lab
    fault: str
    bound_s: float


WAYS = {
    "kill": {
        "torchrun --max-restarts 3, c10d": by_torchrun("c10d", "2"),
        "torchrun --max-restarts 3, static": by_torchrun("static", "2"),
        "llmctl, defaults (backoff 5 s)": by_llmctl(),
        "llmctl, backoff_s: 0": by_llmctl(backoff_s=0),
    },
    "host": {
        "torchrun --nnodes 1:2 --max-restarts 3, c10d": by_torchrun("c10d", "1:2"),
        "llmctl, min_nodes: 1, lease_s: 15": by_llmctl(min_nodes=1, lease_s=15, backoff_s=0),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--fault", choices=sorted(WAYS), default="kill")
    parser.add_argument("--bound", type=float, default=90.0, help="seconds to wait for a new step")
    args = parser.parse_args()
    ways = WAYS[args.fault]
    results: dict[str, list[Result]] = {way: [] for way in ways}
    with Lab.up(2) as lab, tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(folder=Path(folder) / "c", lab=lab)
        for host in lab.names:
            lab.on_host(host, ["mkdir", "-p", "/srv/hand"], check=True)
            lab.path(host, "/srv/hand/train.py").write_text(SCRIPT)
        case = Case(cluster=cluster, lab=lab, fault=args.fault, bound_s=args.bound)
        for _ in range(args.runs):
            for way, go in ways.items():
                results[way].append(measure(go, case))
                print(way, results[way][-1], file=sys.stderr, flush=True)
    print_table(args.fault, args.bound, results)


def print_table(fault: str, bound_s: float, results: dict[str, list[Result]]) -> None:
    runs = len(next(iter(results.values())))
    print(f"| fault: {fault}, to the first new step, n={runs} | min s | median s | max s | lost steps |")
    print("|---|---|---|---|---|")
    for way, found in results.items():
        seconds = [one.seconds for one in found if one.seconds is not None]
        if not seconds:
            print(f"| {way} | none within {bound_s:g} s | | | |")
            continue
        missing = f" ({len(found) - len(seconds)} of {len(found)} never)" if len(seconds) < len(found) else ""
        middle = statistics.median(seconds)
        lost = "-".join(str(n) for n in sorted({one.lost for one in found if one.seconds is not None}))
        print(f"| {way}{missing} | {min(seconds):.1f} | {middle:.1f} | {max(seconds):.1f} | {lost} |")


if __name__ == "__main__":
    main()
