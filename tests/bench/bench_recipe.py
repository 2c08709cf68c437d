"""Tokens per second of the recipe against a bare loop of the same model: what the recipe itself costs.

    python -m tests.bench.bench_recipe [--size small] [--steps 20] [--threads 1] [--precision fp32]

Both train the same decoder with batches of one shape, in one process, a step of one and a step of the other
in turns, so that a busy machine hits both alike. The recipe's steps include its data, numbers and log; the
bare loop is what one would write by hand with torch.optim, on tokens that lie in memory. Prints a markdown
table. CPU seconds are those of the whole process, loader thread included: the number to trust where other
work runs on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from llmctl.wire.recipe import ModelSpec, RecipeSpec
from llmctl.worker.job import Job
from llmctl.worker.loop import Loop
from llmctl.worker.metrics import Metrics
from llmctl.worker.model.decoder import initialise, make_decoder
from llmctl.worker.model.sizes import model_config
from llmctl.worker.recipe import build
from llmctl.worker.session import open_session
from llmctl.worker.stop import StopSignal
from tests.worker_kit import Cluster, make_corpus

WARM_UP = 3
"""First steps that are not counted: allocators and caches fill."""

Cost = tuple[float, float]
"""Wall and CPU seconds of one step."""


class BareLoop:
    """The loop that one would write by hand: mean loss, clip_grad_norm_, torch's fused AdamW."""

    def __init__(self, recipe: RecipeSpec, corpus: Path) -> None:
        self._recipe = recipe
        self._model = make_decoder(model_config(recipe.model, 257), torch.device("cpu"))
        initialise(self._model, recipe.seed)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=recipe.optimizer.lr, fused=True)
        raw = bytearray(min(corpus.glob("*.bin")).read_bytes())
        self._tokens = torch.frombuffer(raw, dtype=torch.uint16).long()
        self._start = 0

    def advance(self) -> None:
        """One step on the next tokens."""
        batch, row = self._recipe.global_batch, self._recipe.sequence_length + 1
        self._start = (self._start + batch * row) % (len(self._tokens) - batch * row)
        ids = self._tokens[self._start : self._start + batch * row].view(batch, row)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._recipe.precision == "bf16"):
            logits = self._model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        loss.item()


def cost_of(step: Callable[[], None]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(recipe: RecipeSpec, base: Path) -> dict[str, list[Cost]]:
    """The costs of each counted step of both loops, taken in turns."""
    cluster = Cluster(base=base, corpus=make_corpus(base / "corpus", shards=1))
    spec, run_dir = cluster.spec(0, recipe, 0), cluster.run_dir()
    Path(run_dir.root).mkdir(parents=True)
    metrics = Metrics(path=str(Path(run_dir.root, "metrics.jsonl")), speaks=False)
    training = build(
        Job(
            spec=spec,
            recipe=recipe,
            session=open_session(spec, {}),
            run_dir=run_dir.root,
            metrics=metrics,
            stop=StopSignal(),
        )
    )
    loops = {"bare": BareLoop(recipe, cluster.corpus).advance, "recipe": Loop(training).advance}
    costs: dict[str, list[Cost]] = {name: [] for name in loops}
    for step in range(recipe.steps):
        # Whoever comes second finds warmer caches, so that changes with every step.
        for name in sorted(loops, reverse=step % 2 == 1):
            costs[name].append(cost_of(loops[name]))
    training.batches.close()
    return {name: taken[WARM_UP:] for name, taken in costs.items()}


def table(recipe: RecipeSpec, costs: dict[str, list[Cost]]) -> str:
    """Medians per loop, and the medians of the step-by-step ratios."""
    tokens = recipe.global_batch * recipe.sequence_length
    lines = ["| loop | tokens per s | tokens per CPU s |", "|---|---|---|"]
    for name, taken in costs.items():
        wall, cpu = (tokens / statistics.median(cost[unit] for cost in taken) for unit in (0, 1))
        lines.append(f"| {name} | {wall:.0f} | {cpu:.0f} |")
    pairs = list(zip(costs["bare"], costs["recipe"], strict=True))
    wall, cpu = (statistics.median(bare[unit] / ours[unit] for bare, ours in pairs) for unit in (0, 1))
    return "\n".join([*lines, f"| recipe / bare | {wall:.3f} | {cpu:.3f} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", default="small")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    given = parser.parse_args()
    recipe = RecipeSpec(
        steps=given.steps,
        global_batch=given.batch,
        micro_batch=given.batch,
        sequence_length=given.length,
        precision=given.precision,
        model=ModelSpec(size=given.size),
        checkpoint_every=0,
        threads=given.threads,
        tensorboard=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        costs = measure(recipe, Path(folder))
    sys.stdout.write(f"{given.size}, {given.batch} x {given.length}, {given.precision}, one process\n\n")
    sys.stdout.write(table(recipe, costs) + "\n")


if __name__ == "__main__":
    main()
