"""Tokens per second while decoding SmolLM2-135M in bf16: the engine, transformers, and what memory allows.

    python -m tests.bench.bench_decode [--threads 2] [--batches 1,8,32] [--new 64] [--rounds 3] [--long 1024]

Per batch size, by turns: our engine with its own kernels, our engine in torch's operations (fused matrices
and a static cache, no kernels), and `transformers.generate`. Same prompts of 32 tokens, greedy, no end token.
Ours is the whole engine: scheduling, sampling and answers included. Two numbers each: the time until all
requests have their first token, and tokens/s from then on. The bound is the time to read every weight once
per step, at the best read bandwidth seen between the runs (torch's own sum; on a busy machine it is too low).
`--long` adds the engine at batch 1 and 8 behind a prompt of that length.

Other engines (vLLM, llama.cpp) need environments of their own: run them beside on the same idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llmctl.wire.infer import Order, ReplicaSpec, SamplingSpec
from llmctl.worker.hf.weights import open_weights
from llmctl.worker.infer.engine.build import build_rank, limits_of
from llmctl.worker.infer.engine.engine import Engine
from llmctl.worker.infer.engine.pipeline import Alone
from llmctl.worker.infer.engine.place import Place
from tests.lab import smollm2

PROMPT = 32

Timing = tuple[float, float]
"""Seconds to the first token; tokens per second after it, over the whole batch."""


_BEST = [0.0]


def bandwidth(size: int = 1 << 30, rounds: int = 5) -> float:
    """Bytes per second that all threads together read from memory; the best that was seen until now."""
    block = torch.ones(size // 4)
    for _ in range(rounds):
        started = time.perf_counter()
        block.sum()
        _BEST[0] = max(_BEST[0], size / (time.perf_counter() - started))
    return _BEST[0]


def prompts(batch: int, length: int) -> list[list[int]]:
    """Different ids for every request."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(100, 40_000, (length,), generator=generator).tolist() for _ in range(batch)]


def ours(model: Path, kernels: str, batch: int, length: int, threads: int) -> Engine:
    """The engine with room for the batch."""
    spec = ReplicaSpec(
        name="bench",
        model=str(model),
        ready_file="",
        max_batch=batch,
        max_length=length,
        chunk=1024,
        threads=threads,
        kernels=kernels,
        device="cpu",
    )
    with open_weights(spec.model) as weights:
        rank = build_rank(spec, weights, Place(), torch.device("cpu"), None).rank
        return Engine(Alone(rank), limits_of(spec, weights.config))


def run_ours(engine: Engine, asked: list[list[int]], new: int) -> Timing:
    """One batch from its orders to its last token."""
    for index, prompt in enumerate(asked):
        sampling = SamplingSpec(max_tokens=new)
        order = Order(op="add", id=str(index), tokens=tuple(prompt), sampling=sampling)
        assert not engine.obey(index, order)
    counts = [0] * len(asked)
    started = time.perf_counter()
    while min(counts) == 0:
        _count(engine, counts)
    first, before = time.perf_counter(), sum(counts)
    while not engine.idle:
        _count(engine, counts)
    assert counts == [new] * len(asked)
    return first - started, (sum(counts) - before) / (time.perf_counter() - first)


def _count(engine: Engine, counts: list[int]) -> None:
    for key, answer in engine.turn():
        assert isinstance(key, int)
        counts[key] += len(answer.tokens)


class Theirs:
    """`transformers.generate`, as its documentation has it."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()

    def run(self, asked: list[list[int]], new: int) -> Timing:
        """The first token's time is that of generating one token alone."""
        one = self._seconds(asked, 1)
        return one, len(asked) * (new - 1) / (self._seconds(asked, new) - one)

    def _seconds(self, asked: list[list[int]], new: int) -> float:
        ids = torch.tensor(asked)
        started = time.perf_counter()
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        seconds = time.perf_counter() - started
        assert out.shape[1] == len(asked[0]) + new
        return seconds


def by_turns(ways: dict[str, Callable[[], Timing]], rounds: int) -> dict[str, Timing]:
    """Medians; each way runs once before it counts."""
    found: dict[str, list[Timing]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            timing = way()
            if number > 0:
                found[name].append(timing)
    return {
        name: (statistics.median(t[0] for t in timings), statistics.median(t[1] for t in timings))
        for name, timings in found.items()
    }


def compare(model: Path, batch: int, given: argparse.Namespace, read: int) -> None:
    """One batch size: a row per way."""
    asked = prompts(batch, PROMPT)
    length = PROMPT + given.new
    native = ours(model, "native", batch, length, given.threads)
    plain = ours(model, "torch", batch, length, given.threads)
    theirs = Theirs(model)
    ways = {
        "engine": lambda: run_ours(native, asked, given.new),
        "engine, torch's operations": lambda: run_ours(plain, asked, given.new),
        "transformers": lambda: theirs.run(asked, given.new),
    }
    rows = by_turns(ways, given.rounds)
    base, bound = rows["transformers"][1], bandwidth() / read
    for name, (first, rate) in rows.items():
        share = f"{rate / bound:.2f}" if batch == 1 else "-"
        told = f"{first * 1e3:.0f} | {rate:.0f} | {rate / base:.2f} | {share}"
        print(f"| {batch} | {name} | {told} |", flush=True)


def long_context(model: Path, given: argparse.Namespace) -> None:
    """The engine behind a long prompt."""
    for batch in (1, 8):
        engine = ours(model, "native", batch, given.long + given.new, given.threads)
        asked = prompts(batch, given.long)
        timing = by_turns({"engine": lambda e=engine, a=asked: run_ours(e, a, given.new)}, given.rounds)[
            "engine"
        ]  # type: ignore[misc]
        print(f"| {batch} | engine, prompt {given.long} | {timing[0] * 1e3:.0f} | {timing[1]:.0f} | - | - |")


def main() -> int:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int, default=1024, help="0: leave that part out")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = smollm2.install()
    with open_weights(str(model)) as weights:
        read = sum(tensor.numel() * 2 for _, tensor in weights.items(list(_names(weights))))
    print(f"{read / 1e6:.0f} MB per step; memory {bandwidth() / 1e9:.1f} GB/s before the first run\n")
    print("| batch | way | first token, ms | tokens/s | of transformers | of the bound |")
    print("|---|---|---|---|---|---|")
    for batch in (int(part) for part in given.batches.split(",")):
        compare(model, batch, given, read)
    if given.long:
        long_context(model, given)
    return 0


def _names(weights: Any) -> list[str]:
    from llmctl.worker.hf.folder import shapes

    return list(shapes(weights.config))


if __name__ == "__main__":
    sys.exit(main())
