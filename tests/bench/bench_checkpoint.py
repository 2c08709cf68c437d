"""How long training stands still for a checkpoint: beside training, while it waits, and by torch.save.

    python -m tests.bench.bench_checkpoint [--rounds 5] [--folder DIR] [--layers 12]

The state is a 135M-parameter decoder with AdamW's moments, 1.6 GB, of one process. The ways take turns on
the same disk. `stall` is what training waits, `total` until the checkpoint is whole: for ours written, on the
disk (fsync), hashed, committed; torch.save stops at the page cache, so a second line adds the fsync. Prints a
markdown table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from llmctl.storage.local import LocalStore
from llmctl.storage.retention import Retention
from llmctl.wire.manifests import CheckpointManifest
from llmctl.wire.recipe import ModelSpec, OptimizerSpec
from llmctl.worker.checkpoint.place import Place
from llmctl.worker.checkpoint.save import Saver
from llmctl.worker.checkpoint.state import training_tensors
from llmctl.worker.checkpoint.writer import Writer
from llmctl.worker.metrics import Metrics
from llmctl.worker.model.decoder import initialise, make_decoder
from llmctl.worker.model.sizes import model_config
from llmctl.worker.optim import AdamW
from llmctl.worker.session import Session

VOCABULARY = 40_960
ALONE = Session(
    rank=0,
    world=1,
    local_rank=0,
    host="here",
    device=torch.device("cpu"),
    host_leaders=(0,),
    host_ranks=(0,),
)

Cost = tuple[float, float]
"""Seconds of stall, and until the checkpoint is whole."""


def make_state(layers: int) -> dict[str, Tensor]:
    """Weights and moments, each with numbers of its own: zeros would be pages that don't exist."""
    config = model_config(ModelSpec(size="125m", overrides={"layers": layers}), VOCABULARY)
    model = make_decoder(config, ALONE.device)
    initialise(model, 0)
    tensors = training_tensors(model, AdamW(model.named_parameters(), OptimizerSpec()))
    for name, tensor in tensors.items():
        if not name.startswith("model.") and tensor.is_floating_point():
            tensor.normal_()
    return tensors


def ours(
    folder: Path, state: dict[str, Tensor], *, in_background: bool
) -> tuple[Saver, Callable[[int], Cost]]:
    """Our saver, and one save by it."""
    store = LocalStore(folder)
    folder.mkdir()
    marker = CheckpointManifest(run_id="bench", attempt=1, step=0, world_size=1, created_at=0.0, files=())
    writer = Writer(
        session=ALONE,
        place=Place(store=store, desk=store, shared=True),
        template=marker,
        retention=Retention(keep=1),
        extra_files={},
        say=print,
    )
    saver = Saver(
        session=ALONE,
        writer=writer,
        metrics=Metrics(path=None, speaks=False),
        in_background=in_background,
    )
    saver.warm_up(state)

    def save(step: int) -> Cost:
        began = time.perf_counter()
        saver.save(step, state)
        stall = time.perf_counter() - began
        saver.finish()
        return stall, time.perf_counter() - began

    return saver, save


def by_torch(folder: Path, state: dict[str, Tensor], *, sync: bool) -> Callable[[int], Cost]:
    """torch.save to a temporary name, then a rename: what one would write by hand."""
    folder.mkdir()

    def save(step: int) -> Cost:
        began = time.perf_counter()
        with (folder / "new").open("wb") as stream:
            torch.save(state, stream)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        (folder / "new").replace(folder / "checkpoint.pt")
        took = time.perf_counter() - began
        return took, took

    return save


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=None, help="on the disk to measure; else the temporary one"
    )
    parser.add_argument("--layers", type=int, default=12)
    given = parser.parse_args()
    state = make_state(given.layers)
    folder = Path(tempfile.mkdtemp(prefix="llmctl-bench-", dir=given.folder))
    try:
        measure(folder, state, given.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, state: dict[str, Tensor], rounds: int) -> None:
    """All ways in turns; the first turn warms up and is not counted."""
    beside, save_beside = ours(folder / "beside", state, in_background=True)
    waiting, save_waiting = ours(folder / "waiting", state, in_background=False)
    ways: dict[str, Callable[[int], Cost]] = {
        "torch.save": by_torch(folder / "torch", state, sync=False),
        "torch.save + fsync": by_torch(folder / "torch-fsync", state, sync=True),
        "ours, async: false": save_waiting,
        "ours, async: true": save_beside,
    }
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for step in range(rounds + 1):
        for name, save in ways.items():
            os.sync()  # nobody pays for the pages that the one before left dirty
            cost = save(step)
            if step:
                costs[name].append(cost)
    beside.close()
    waiting.close()
    size = sum(tensor.nbytes for tensor in state.values())
    weights = sum(tensor.numel() for name, tensor in state.items() if name.startswith("model."))
    base = statistics.median(stall for stall, _ in costs["torch.save"])
    sys.stdout.write(f"\n{weights / 1e6:.0f} M parameters, {size / 1e9:.2f} GB\n\n")
    sys.stdout.write(
        f"| way (n={rounds}) | stall, median (min-max) | of torch.save | total |\n|---|---|---|---|\n"
    )
    for name, found in costs.items():
        stalls = sorted(stall for stall, _ in found)
        median = statistics.median(stalls)
        total = statistics.median(total for _, total in found)
        spread = f"{median:.2f} s ({stalls[0]:.2f}-{stalls[-1]:.2f})"
        sys.stdout.write(f"| {name} | {spread} | {median / base:.3f} | {total:.2f} s |\n")


if __name__ == "__main__":
    main()
