"""`infer serve` under 1, 8 and 32 clients, and `infer batch` on two hosts beside one.

    python -m tests.bench.bench_infer serve [--clients 1,8,32] [--requests 45,160,320] [--rounds 3]
    python -m tests.bench.bench_infer batch [--lines 256] [--new 64] [--rounds 1]

`serve`: one local host with all cores; the official `openai` client in one process, a thread per client,
streaming; clients and server share the machine. Throughput counts all tokens over the whole time; a latency
is that of one whole answer; with several rounds, which go through all crowds in turn, the last rows hold the
requests of all of them. `batch` needs root: two hosts of the lab, each held to one core by its cgroup,
one replica with one thread each. Its work is timed from the first replica's readiness to the last line, by
the front's clock. Real weights: SmolLM2-135M in bf16.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.cluster import Cluster, until
from tests.lab import smollm2
from tests.lab.hosts import Lab

PLACE = "/srv/bench-model"
TOPICS = ("rivers", "bread", "the moon", "old maps", "bicycles", "winter", "glass", "bees")


def job(cluster: Cluster, model: str, **keys: Any) -> None:
    cluster.write_job(infer={"model": model, "max_tokens": 512, "check": False, **keys})


# --- serve ---


def ask(client: Any, number: int, new: int) -> tuple[float, float, int]:
    """(seconds to the first piece, seconds in all, tokens) of one streamed answer."""
    prompt = (
        f"Text number {number}. Here is a long story about {TOPICS[number % len(TOPICS)]}, told by my aunt:"
    )
    started, first = time.perf_counter(), 0.0
    stream = client.completions.create(
        model="bench", prompt=prompt, max_tokens=new, stream=True, stream_options={"include_usage": True}
    )
    tokens = 0
    for chunk in stream:
        first = first or time.perf_counter() - started
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return first, time.perf_counter() - started, tokens


@dataclass(frozen=True)
class Crowd:
    """What so many clients saw: seconds in all, and `ask`'s numbers of each request."""

    clients: int
    seconds: float
    found: list[tuple[float, float, int]]

    def row(self, name: str) -> None:
        """Print it."""
        firsts, wholes = sorted(f[0] for f in self.found), sorted(f[1] for f in self.found)
        told = [statistics.median(firsts), at(firsts, 0.99), statistics.median(wholes), at(wholes, 0.99)]
        tokens, count = sum(f[2] for f in self.found), len(self.found)
        cells = " | ".join(f"{value:.2f}" for value in told)
        rates = f"{tokens / self.seconds:.0f} | {count / self.seconds:.2f}"
        print(f"| {name} | {self.clients} | {count} | {rates} | {cells} |", flush=True)


def crowd(url: str, clients: int, count: int, new: int) -> Crowd:
    """So many clients, each with one request after the other."""
    import openai

    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300.0) as client:
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(lambda n: ask(client, n, new), range(clients)))  # warm
            started = time.perf_counter()
            found = list(threads.map(lambda n: ask(client, n, new), range(count)))
        return Crowd(clients, time.perf_counter() - started, found)


def together(rounds: list[Crowd]) -> Crowd:
    """All requests of the same crowd in several rounds."""
    found = [one for crowd in rounds for one in crowd.found]
    return Crowd(rounds[0].clients, sum(crowd.seconds for crowd in rounds), found)


def at(ordered: list[float], share: float) -> float:
    """The value below which that share lies (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def serve(given: argparse.Namespace, folder: Path) -> None:
    cluster = Cluster(folder=folder / "c")
    job(cluster, str(smollm2.install()), name="bench", max_batch=32)
    shown = cluster.popen("infer", "serve", "--port", "0", "-j", "1x1", stderr=subprocess.STDOUT)
    said: list[str] = []
    threading.Thread(target=lambda: said.extend(iter(shown.stdout.readline, "")), daemon=True).start()  # type: ignore[union-attr]
    url = until(lambda: re.search(r"http://\S+/v1", "".join(said)), within=200, what="the URL")[0]
    sizes = [int(part) for part in given.clients.split(",")]
    counts = [int(part) for part in given.requests.split(",")]
    seen: dict[int, list[Crowd]] = {clients: [] for clients in sizes}
    print("| round | clients | requests | tokens/s | requests/s | first p50, s | p99 | answer p50, s | p99 |")
    print("|---|---|---|---|---|---|---|---|---|")
    try:
        for number in range(given.rounds):
            for clients, count in zip(sizes, counts, strict=True):
                seen[clients].append(crowd(url, clients, count, given.new))
                seen[clients][-1].row(str(number + 1))
        for rounds in seen.values():
            together(rounds).row("all")
    finally:
        run = cluster.json("status")["runs"][0]["run_id"]
        cluster.run("stop", run, "--grace", "2")
        shown.wait(60)


# --- batch ---


def batch(given: argparse.Namespace, folder: Path) -> None:
    with Lab.up(2, cpus=1.0) as lab:
        cluster = Cluster(folder=folder / "c", lab=lab)
        cluster.copy_to_hosts(smollm2.install(), PLACE)
        (folder / "in").mkdir()
        lines = [
            {"prompt": f"Text {n}. A story about {TOPICS[n % len(TOPICS)]}:", "max_tokens": given.new}
            for n in range(given.lines)
        ]
        (folder / "in/in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        cluster.copy_to_hosts(folder / "in", "/srv/bench-in")
        job(cluster, PLACE, max_batch=16, threads=1, part_lines=8)
        print("| hosts | tokens | work, s | tokens/s | whole command, s |")
        print("|---|---|---|---|---|")
        for number in range(given.rounds):
            for hosts in (1, 2):
                one_batch(cluster, hosts, number)


def one_batch(cluster: Cluster, hosts: int, number: int) -> None:
    """One row; the work's time is the front's own, from its notes."""
    started = time.perf_counter()
    document = cluster.json(
        "infer", "batch", "--input", "/srv/bench-in/in.jsonl", "--output", f"/srv/out-{hosts}-{number}",
        "-j", f"{hosts}x1",
    )  # fmt: skip
    whole = time.perf_counter() - started
    path = cluster.run_dir("a", document["run"]["run_id"]) / "attempt-1/metrics.jsonl"
    notes = [line for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == "note"]
    begins = min(line["t"] for line in notes if "is ready on" in line["text"])
    end, tokens = next(
        (line["t"], re.search(r"(\d+) made", line["text"])) for line in notes if " made" in line["text"]
    )
    work = end - begins
    made = int(tokens[1]) if tokens else 0
    print(f"| {hosts} | {made} | {work:.1f} | {made / work:.0f} | {whole:.1f} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("serve", "batch"))
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--requests", default="45,160,320", help="in all, for each of --clients")
    parser.add_argument("--lines", type=int, default=256)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (serve if given.what == "serve" else batch)(given, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
