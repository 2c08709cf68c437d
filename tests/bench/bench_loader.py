"""Training that reads its corpus from a real Ceph and a real HDFS with a cold cache, beside a local folder.

    python -m tests.bench.bench_loader                # as root, on an idle machine
    python -m tests.bench.bench_loader --rounds 1 --steps 40 --only HDFS

Two hosts of one rank each, one core each, the recipe's tiny model. Shards are small, so that training goes
through several blocks of them: what is read ahead, two blocks, is a small part of the corpus, and blocks are
fetched while training goes on. The wait for data is what the ranks measure themselves and write into their
metrics. The second table asks for one batch of a fresh reader, a start at step 0 beside starts further on:
the position costs arithmetic, and the shards that it needs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from llmctl.storage.corpus.loader import SampleLoader
from llmctl.storage.corpus.order import BLOCK_SHARDS, SampleOrder
from llmctl.storage.corpus.reader import ShardReader
from llmctl.storage.corpus.shard import shard
from llmctl.wire.recipe import RecipeSpec
from tests.lab.ceph import Ceph
from tests.lab.hdfs import Hdfs
from tests.worker_kit import Cluster

SHARD_TOKENS = 32 << 10
STARTS = (0, 1_000, 1_000_000, 1_000_000_000)
RECIPE = RecipeSpec(precision="fp32", checkpoint_every=0, tensorboard=False, threads=1, sequence_length=256)


@contextmanager
def stores(folder: Path, only: str | None) -> Iterator[dict[str, str]]:
    """A URI below which nothing is, by kind of store; `only` that one beside the local folder."""
    # A bundle for proxies of this machine, which is none of Ceph's.
    os.environ.pop("AWS_CA_BUNDLE", None)
    with ExitStack() as stack:
        uris = {"a local folder": str(folder / "local")}
        if only != "HDFS":
            ceph = stack.enter_context(Ceph.up())
            os.environ.update(ceph.environment())
            uris["Ceph (s3)"] = f"s3://{ceph.bucket}/loader"
        if only != "Ceph":
            uris["HDFS"] = f"hdfs://{stack.enter_context(Hdfs.up()).rpc}/loader"
        yield uris


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
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--only", choices=("Ceph", "HDFS"))
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder, stores(Path(folder), options.only) as uris:
        source = sysconfig.get_paths()["stdlib"] + "/*.py"
        for uri in uris.values():
            manifest = shard([source], uri, shard_tokens=SHARD_TOKENS)
        wanted = options.steps * RECIPE.global_batch * RECIPE.sequence_length
        print(f"{manifest.tokens:,} tokens in {len(manifest.shards)} shards, {2 * BLOCK_SHARDS} read ahead;")
        print(
            f"{options.steps} steps take {wanted:,} tokens, {wanted / SHARD_TOKENS / BLOCK_SHARDS:.1f} blocks"
        )
        waits(uris, options.steps, options.rounds)
        starts(uris, options.rounds)
    print(f"\nload average {os.getloadavg()[0]:.1f}")


def waits(uris: dict[str, str], steps: int, rounds: int) -> None:
    """The table of training with a cold cache."""
    runs = [{name: train(uri, steps) for name, uri in uris.items()} for _ in range(rounds)]
    print(f"\n| corpus in (n={rounds}) | wait of step 1 | waits of all later steps | share of their time |")
    print("|---|---|---|---|")
    for name in uris:
        first, later, took = (statistics.median(run[name][i] for run in runs) for i in range(3))
        print(f"| {name} | {first:.3f} s | {later:.3f} s | {later / took:.2%} |", flush=True)


def starts(uris: dict[str, str], rounds: int) -> None:
    """The table of first batches, the starts by turns."""
    print(
        f"\n| corpus in (n={rounds}) | "
        + " | ".join(f"first batch at step {step:,}" for step in STARTS)
        + " |"
    )
    print("|---" * (len(STARTS) + 1) + "|")
    for name, uri in uris.items():
        times = [[first_batch(uri, step) for step in STARTS] for _ in range(rounds)]
        medians = (statistics.median(one[i] for one in times) for i in range(len(STARTS)))
        print(f"| {name} | " + " | ".join(f"{median:.3f} s" for median in medians) + " |", flush=True)


if __name__ == "__main__":
    main()
