"""From Enter to the first training step on two SSH hosts, warm code; beside the same two torchrun by hand.

    sudo python tests/bench/bench_start.py [--runs 7]

Needs root (the hosts are namespaces on this machine, so that their clock is ours). The step is a real one:
DDP over gloo, backward and optimizer; the script prints the clock after it. All ways take turns, run by run.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.integration.cluster import Cluster, until
from tests.lab.hosts import Lab

SCRIPT = """
import os, time
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

def main():
    model = DDP(torch.nn.Linear(64, 64))
    opt = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(8, 64)).sum().backward(); opt.step()
    print("first step at", time.time(), flush=True)

dist.init_process_group("gloo")
main()
dist.destroy_process_group()
os._exit(0)  # torch 2.13 with gloo now and then aborts in the interpreter's own exit, by hand as well
"""
PORT = 29411


def by_hand(cluster: Cluster, lab: Lab) -> float:
    """Two ssh at once, each with the torchrun command that a person would type; the code is there already."""
    started = time.time()
    clients = []
    for rank, host in enumerate(lab.names):
        command = (
            f"cd /srv/hand && GLOO_SOCKET_IFNAME=eth0 OMP_NUM_THREADS=1 "
            f"{sys.executable} -m torch.distributed.run --nnodes 2 --node-rank {rank} --nproc-per-node 1 "
            f"--master-addr {lab.ips[lab.names[0]]} --master-port {PORT} train.py"
        )
        argv = ["ssh", "-F", str(lab.ssh_config), host, command]
        clients.append(lab.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    outputs = [client.communicate(timeout=120) for client in clients]
    return first_step("".join(out for out, _ in outputs), outputs) - started


def by_llmctl(launcher: str) -> Callable[[Cluster, Lab], float]:
    """`llmctl train`, as typed; the code has been pushed before, the interpreter starts cold."""

    def measure(cluster: Cluster, lab: Lab) -> float:
        cluster.write_script(SCRIPT, train={"launcher": launcher})
        started = time.time()
        done = cluster.run("train", "--no-pull")
        until(lambda: not cluster.processes("t-"), what="quiet")
        return first_step(done.stderr, done.stderr) - started

    return measure


def first_step(text: str, told: object) -> float:
    """The clock of rank 0's first step: the earliest of the ranks' lines."""
    times = [float(found) for found in re.findall(r"first step at ([0-9.]+)", text)]
    assert len(times) == 2, told
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    ways = {
        "two torchrun by hand over ssh": by_hand,
        "llmctl train (launcher: torchrun)": by_llmctl("torchrun"),
        "llmctl train (launcher: direct)": by_llmctl("direct"),
    }
    with Lab.up(2) as lab, tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(folder=Path(folder) / "c", lab=lab)
        for host in lab.names:
            lab.on_host(host, ["mkdir", "-p", "/srv/hand"], check=True)
            lab.path(host, "/srv/hand/train.py").write_text(SCRIPT)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(runs + 1):  # the first round warms files and pushes code
            for way, measure in ways.items():
                took = measure(cluster, lab)
                if number:
                    seconds[way].append(took)
    print_table(seconds)


def print_table(seconds: dict[str, list[float]]) -> None:
    base = statistics.median(next(iter(seconds.values())))
    runs = len(next(iter(seconds.values())))
    print(f"| from Enter to the first step, n={runs}, in turns | min s | median s | max s | over by hand s |")
    print("|---|---|---|---|---|")
    for way, values in seconds.items():
        middle = statistics.median(values)
        print(f"| {way} | {min(values):.2f} | {middle:.2f} | {max(values):.2f} | {middle - base:+.2f} |")


if __name__ == "__main__":
    main()
