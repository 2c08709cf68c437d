"""How much of the machine's memory bandwidth the engine's decoding at batch 1 uses: both measured by turns.

    python -m tests.bench.bench_bound [--threads 2] [--pairs 12] [--new 64]

One pair: the read bandwidth, one answer, the bandwidth again; its share is that of the mean of both. Whatever
slows the machine for a moment so slows both sides, which it did not where they were measured minutes apart.
Bandwidth is torch's sum, which does nothing but read, over 1 GiB and over a block as large as the weights
(of which a big cache might keep a part): the median of a few passes each. SmolLM2-135M in bf16. What the
cores did meanwhile for others, on this machine and (stolen) beside it, is told per run: a decoding step ends
with its slowest thread, so one core that is taken away for a moment stops both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch

from llmctl.worker.hf.folder import shapes
from llmctl.worker.hf.weights import open_weights
from tests.bench.bench_decode import PROMPT, ours, prompts, run_ours
from tests.lab import smollm2

PASSES = 5
LARGE = 1 << 30


def read_rate(block: torch.Tensor) -> float:
    """Bytes per second that all threads together read; the median of a few passes."""
    seconds = []
    for _ in range(PASSES):
        started = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - started)
    return block.numel() * block.element_size() / statistics.median(seconds)


def spread(values: list[float], form: str) -> str:
    """`median (smallest-largest)`."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


class Others:
    """Processor time that was not ours, as a share of all cores' since it was made."""

    def __init__(self) -> None:
        self._since = self._now()

    def share(self) -> tuple[float, float]:
        """(other processes', stolen by other machines)."""
        mine, busy, stolen, total = (b - a for a, b in zip(self._since, self._now(), strict=True))
        return max(0.0, busy - mine) / total, stolen / total

    @staticmethod
    def _now() -> tuple[float, float, float, float]:
        ticks = os.sysconf("SC_CLK_TCK")
        line = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        user, nice, system, idle, wait, irq, soft, steal = (int(word) / ticks for word in line[:8])
        busy = user + nice + system + irq + soft
        times = os.times()
        return times.user + times.system, busy, steal, busy + idle + wait + steal


def main() -> int:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--new", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = smollm2.install()
    with open_weights(str(model)) as weights:
        size = sum(tensor.numel() * 2 for _, tensor in weights.items(list(shapes(weights.config))))
    blocks = {"1 GiB": torch.ones(LARGE // 4), f"{size / 1e6:.0f} MB": torch.ones(size // 4)}
    engine, asked = ours(model, "native", 1, PROMPT + given.new, given.threads), prompts(1, PROMPT)
    run_ours(engine, asked, given.new)
    rates: list[float] = []
    reads: dict[str, list[float]] = {name: [] for name in blocks}
    shares: dict[str, list[float]] = {name: [] for name in blocks}
    others = Others()
    before = {name: read_rate(block) for name, block in blocks.items()}
    for _ in range(given.pairs):
        rates.append(run_ours(engine, asked, given.new)[1])
        after = {name: read_rate(block) for name, block in blocks.items()}
        for name in blocks:
            reads[name].append((before[name] + after[name]) / 2)
            shares[name].append(rates[-1] * size / reads[name][-1])
        before = after
    busy, stolen = others.share()
    print(f"{size / 1e6:.0f} MB per token, n={given.pairs} pairs; median (smallest-largest)")
    print(f"of the processors' time, other processes had {busy:.1%}, {stolen:.1%} was stolen\n")
    print("| decoding, tokens/s | read over | bandwidth, GB/s | share of it |")
    print("|---|---|---|---|")
    for name in blocks:
        told = [f"{rate / 1e9:.3g}" for rate in reads[name]]
        row = [spread(rates, ".0f"), name, spread([r / 1e9 for r in reads[name]], ".1f")]
        print(f"| {' | '.join([*row, spread(shares[name], '.2f')])} |", flush=True)
        print(f"  pairs: {list(zip([round(r) for r in rates], told, strict=True))}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
