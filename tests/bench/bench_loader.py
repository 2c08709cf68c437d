"""Training that reads its corpus from a real Ceph and a real HDFS with a cold cache, beside a local folder.

    python -m tests.bench.bench_loader                # as root, on an idle machine
    python -m tests.bench.bench_loader --rounds 1 --steps 40

Two hosts of one rank each, one core each, the recipe's tiny model. The wait for data is what the ranks
measure themselves and write into their metrics. The second table asks for one batch of a fresh reader, start
at step 0 beside a start far on: the position costs arithmetic, and the shards that it needs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from llmctl.storage.corpus.loader import SampleLoader
from llmctl.storage.corpus.order import SampleOrder
from llmctl.storage.corpus.reader import ShardReader
from llmctl.storage.corpus.shard import shard
from llmctl.wire.recipe import RecipeSpec
from tests.lab.ceph import Ceph
from tests.lab.hdfs import Hdfs
from tests.worker_kit import Cluster

SHARD_TOKENS = 2 << 20
FAR = 1_000_000
RECIPE = RecipeSpec(precision="fp32", checkpoint_every=0, tensorboard=False, threads=1, sequence_length=256)


@contextmanager
def stores(folder: Path) -> Iterator[dict[str, str]]:
    """A URI below which nothing is, by kind of store."""
    # A bundle for proxies of this machine, which is none of Ceph's.
    os.environ.pop("AWS_CA_BUNDLE", None)
    with Ceph.up() as ceph, Hdfs.up() as hdfs:
        os.environ.update(ceph.environment())
        yield {
            "a local folder": str(folder / "local"),
            "Ceph (s3)": f"s3://{ceph.bucket}/loader",
            "HDFS": f"hdfs://{hdfs.rpc}/loader",
        }


def train(uri: str, steps: int) -> tuple[float, float, float]:
    """One run with cold caches: (wait of the first step, of all others, time of all others), seconds."""
    env = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with tempfile.TemporaryDirectory() as base:
        cluster = Cluster(base=Path(base), corpus=Path(base), ranks=(1, 1), env={**env, "HOME": base})
        cluster.train(replace(RECIPE, steps=steps), data_uri=uri)
        lines = cluster.lines()
    took = [line["tokens"] / line["tokens_per_s"] for line in lines]
    waits = [line["data_wait"] * seconds for line, seconds in zip(lines, took, strict=True)]
    return waits[0], sum(waits[1:]), sum(took[1:])


def copies_of_the_library(folder: Path, copies: int) -> list[Path]:
    """Text files, each with the source of Python's standard library; a larger corpus is several of them."""
    folder.mkdir()
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = "\n".join(module.read_text(encoding="utf-8", errors="replace") for module in modules)
    paths = [folder / f"{number}.txt" for number in range(copies)]
    for path in paths:
        path.write_text(text, encoding="utf-8")
    return paths


def first_batch(uri: str, step: int) -> float:
    """Seconds from a fresh reader with an empty cache to its first batch."""
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        reader = ShardReader(uri, Path(cache))
        order = SampleOrder(reader.manifest, RECIPE.sequence_length, RECIPE.seed)
        with SampleLoader(
            reader, order, global_batch=RECIPE.global_batch, rank=0, world=1, start_step=step
        ) as loader:
            next(loader)
        took = time.perf_counter() - began
        reader.close()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--copies", type=int, default=1, help="how often the corpus holds the library's text")
    options = parser.parse_args()
    rounds = range(options.rounds)
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder, stores(Path(folder)) as uris:
        sources = [str(path) for path in copies_of_the_library(Path(folder) / "text", options.copies)]
        for uri in uris.values():
            manifest = shard(sources, uri, shard_tokens=SHARD_TOKENS)
        print(f"{manifest.tokens:,} tokens in {len(manifest.shards)} shards, {options.steps} steps")
        runs = [{name: train(uri, options.steps) for name, uri in uris.items()} for _ in rounds]
        print("\n| corpus in | wait of the first step | waits of all later steps | share of their time |")
        print("|---|---|---|---|")
        for name in uris:
            first, later, took = (statistics.median(run[name][i] for run in runs) for i in range(3))
            print(f"| {name} | {first:.3f} s | {later:.3f} s | {later / took:.2%} |", flush=True)
        print(f"\n| corpus in (n={options.rounds}) | first batch at step 0 | at step {FAR:,} |")
        print("|---|---|---|")
        for name, uri in uris.items():
            times = [(first_batch(uri, 0), first_batch(uri, FAR)) for _ in rounds]
            near, far = (statistics.median(pair[i] for pair in times) for i in (0, 1))
            print(f"| {name} | {near:.3f} s | {far:.3f} s |", flush=True)
    print(f"\nload average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
