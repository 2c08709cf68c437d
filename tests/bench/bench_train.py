"""Tokens per second of the recipe beside a loop by hand and beside its peers, the same work side by side.

    python -m tests.bench.bench_train                      # as anybody, on an idle machine
    python -m tests.bench.bench_train --base DDP           # a part of it: bare, DDP or FSDP2
    python -m tests.bench.bench_train --size tiny --rounds 1 --batch 2 --length 32     # does it run?

One decoder, one corpus, one global batch. In one process with all cores: a bare loop, the recipe, Accelerate,
Lightning Fabric and the transformers Trainer, in fp32, the first two in bf16 autocast, too. On two ranks that
share the cores: DDP and FSDP2 by hand, the recipe in both layouts, Accelerate and Fabric with DDP. All are
alive at once and take turns, a few steps each, so that a slow minute hits all; medians of the rounds.

The peers live in an environment of their own, made at the first run (--peers, else in ~/.cache): it sees
this one's packages, and holds what they lack. Without a network, --no-peers measures the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llmctl.wire.codec import encode
from llmctl.wire.model import count_parameters, model_config
from llmctl.wire.parallel import ParallelSpec
from llmctl.wire.recipe import ModelSpec, RecipeSpec
from tests.worker_kit import ROOT, Cluster, free_port, make_corpus

PEERS = ("accelerate", "lightning-fabric", "transformers")
CACHE = Path("~/.cache/llmctl-bench/peers").expanduser()
WARM_UP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A row of the table.

    Attributes:
        way: of `train_ways`.
        base: the row that this one is held against.
    """

    name: str
    way: str
    base: str
    ranks: int = 1
    precision: str = "fp32"
    parallel: ParallelSpec | None = None
    is_peer: bool = False


ROWS = (
    Way(name="bare loop", way="bare", base="bare loop"),
    Way(name="recipe", way="recipe", base="bare loop"),
    Way(name="Accelerate", way="accelerate", base="bare loop", is_peer=True),
    Way(name="Lightning Fabric", way="fabric", base="bare loop", is_peer=True),
    Way(name="transformers Trainer", way="trainer", base="bare loop", is_peer=True),
    Way(name="bare loop, bf16", way="bare", base="bare loop", precision="bf16"),
    Way(name="recipe, bf16", way="recipe", base="bare loop", precision="bf16"),
    Way(name="DDP x2 by hand", way="ddp", base="DDP x2 by hand", ranks=2),
    Way(name="recipe, ddp 2", way="recipe", base="DDP x2 by hand", ranks=2),
    Way(name="Accelerate x2", way="accelerate", base="DDP x2 by hand", ranks=2, is_peer=True),
    Way(name="Lightning Fabric x2", way="fabric", base="DDP x2 by hand", ranks=2, is_peer=True),
    Way(name="FSDP2 x2 by hand", way="fsdp", base="FSDP2 x2 by hand", ranks=2),
    Way(
        name="recipe, fsdp 2",
        way="recipe",
        base="FSDP2 x2 by hand",
        ranks=2,
        parallel=ParallelSpec(dp_shard=2),
    ),
)


class Running:
    """One way's ranks, which wait at their gates."""

    def __init__(self, row: Way, recipe: RecipeSpec, folder: Path, steps: int, python: str) -> None:
        self.row = row
        folder.mkdir()
        port, cores = free_port(), len(os.sched_getaffinity(0))
        recipe = replace(recipe, precision=row.precision, threads=max(1, cores // row.ranks))
        cluster = Cluster(base=folder, corpus=folder.parent / "corpus", ranks=(row.ranks,))
        told = {
            "spec": encode(cluster.spec(0, recipe, port)),
            "recipe": encode(replace(recipe, parallel=None)),
            "parallel": encode(row.parallel) if row.parallel else None,
            "warm_up": WARM_UP,
            "steps": steps,
        }
        settings = folder / "settings.json"
        settings.write_text(json.dumps(told))
        self._ranks = [
            subprocess.Popen(
                [python, "-m", "tests.bench.train_ways", row.way, str(settings)],
                env=_environment(rank, row.ranks, port, recipe.threads or 1),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(row.ranks)
        ]
        self._wait()

    def round(self) -> float:
        """Seconds of the next steps."""
        self._tell("go\n")
        return self._wait()

    def end(self) -> None:
        """Let the ranks go, and see them gone."""
        self._tell("\n")
        for rank in self._ranks:
            try:
                rank.wait(timeout=60)
            except subprocess.TimeoutExpired:
                rank.kill()
                rank.wait()

    def _tell(self, line: str) -> None:
        for rank in self._ranks:
            if rank.stdin is not None and rank.poll() is None:
                rank.stdin.write(line)
                rank.stdin.flush()

    def _wait(self) -> float:
        """Until every rank is at its gate; the slowest one's seconds."""
        return max(map(self._seconds, self._ranks))

    def _seconds(self, rank: subprocess.Popen[str]) -> float:
        for line in rank.stdout or ():
            if line.startswith("round "):
                return float(line.split()[1])
        raise SystemExit(f"{self.row.name}: a rank ended with {rank.wait()}; its words are above")


def _environment(rank: int, ranks: int, port: int, threads: int) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": str(threads),
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def peers_python(folder: Path) -> str:
    """The interpreter of the peers' environment, made and filled where it is not there."""
    python = folder / "bin/python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        own = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        # This environment's packages, torch above all, are seen there and not loaded down again.
        (own / "bench.pth").write_text(sysconfig.get_path("purelib") + "\n")
    needed = "import accelerate, lightning_fabric, transformers"
    if subprocess.run([python, "-c", needed], stderr=subprocess.DEVNULL, check=False).returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
    return str(python)


def matmul_peak(dtype: torch.dtype, seconds: float = 3.0) -> float:
    """The most floating-point operations per second that a large product reaches with all cores."""
    size = 2048
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best, ends = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < ends:
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def table(rates: dict[str, list[float]], rows: list[Way], parameters: int, peak: dict[str, float]) -> str:
    """Markdown: tokens per second, of the base row's, of the matmul peak in the row's own precision.

    A ratio is the median over the rounds of this row's rate by its base's in the same round, so that a slow
    minute, which hits both, doesn't show in it.
    """
    lines = ["| way | tokens per s (min-max) | of its base (min-max) | of matmul peak |", "|---|---|---|---|"]
    for row in rows:
        rate = statistics.median(rates[row.name])
        share = 6 * parameters * rate / peak[row.precision]
        ratios = [ours / theirs for ours, theirs in zip(rates[row.name], rates[row.base], strict=True)]
        cells = (row.name, _spread(rates[row.name], 0), f"{_spread(ratios, 3)} of {row.base}", f"{share:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    """The median, and between what the values lie."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def measure(
    rows: list[Way], recipe: RecipeSpec, rounds: int, steps: int, peers: str
) -> dict[str, list[float]]:
    """Tokens per second of each row in each of its rounds."""
    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    with tempfile.TemporaryDirectory() as base:
        make_corpus(Path(base, "corpus"), shards=1)
        ways: list[Running] = []
        try:
            for row in rows:
                python = peers if row.is_peer else sys.executable
                ways.append(Running(row, recipe, Path(base, row.name), steps, python))
            for number in range(rounds):
                # Whoever comes second finds warmer caches, so the order turns round.
                for way in ways[:: -1 if number % 2 else 1]:
                    seconds[way.row.name].append(way.round())
        finally:
            for way in ways:
                way.end()
    tokens = recipe.global_batch * recipe.sequence_length * steps
    return {name: [tokens / each for each in taken] for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", default="small")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of each way in each round")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--peers", type=Path, default=CACHE)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument(
        "--base", default="", help="only rows that are held against this one: bare, DDP, FSDP2"
    )
    given = parser.parse_args()
    rows = [row for row in ROWS if given.base in row.base and not (given.no_peers and row.is_peer)]
    peers = "" if given.no_peers else peers_python(given.peers)
    recipe = RecipeSpec(
        steps=1_000_000,
        global_batch=given.batch,
        micro_batch=given.batch,
        sequence_length=given.length,
        model=ModelSpec(size=given.size),
        checkpoint_every=0,
        tensorboard=False,
    )
    rates = measure(rows, recipe, given.rounds, given.steps, peers)
    peak = {"fp32": matmul_peak(torch.float32), "bf16": matmul_peak(torch.bfloat16)}
    parameters = count_parameters(model_config(recipe.model, 257))
    told = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in peak.items())
    sys.stdout.write(
        f"{given.size}: {parameters / 1e6:.1f} M parameters, {given.batch} x {given.length} tokens a step, "
        f"{len(os.sched_getaffinity(0))} cores, n={given.rounds}; matmul peak {told}\n\n"
    )
    sys.stdout.write(table(rates, rows, parameters, peak) + "\n")


if __name__ == "__main__":
    main()
