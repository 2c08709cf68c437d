"""One rank of one way to train the same decoder on the same tokens: what `bench_train` starts and times.

    python -m tests.bench.train_ways WAY SETTINGS.json

A way calls `gate.step()` before each of its steps. The gate lets the warm-up pass, then counts rounds: it
says how long a round took, and waits for a line on stdin before the next. So many ways are alive at once and
take turns, however each one's loop is built; while it waits, a way costs nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.wire.codec import decode
from llmctl.wire.parallel import ParallelSpec
from llmctl.wire.recipe import RecipeSpec
from llmctl.wire.specs import NodeSpec
from llmctl.worker.model.decoder import Decoder, initialise, make_decoder
from llmctl.worker.model.sizes import model_config


@dataclass(slots=True, kw_only=True)
class Gate:
    """See the module. `warm_up`, `steps`: before the first round, and of each."""

    warm_up: int
    steps: int
    taken: int = 0
    began: float = 0.0

    def step(self) -> None:
        """A step is about to begin; the process ends here when no further round is wanted."""
        done = self.taken - self.warm_up
        if done >= 0 and done % self.steps == 0:
            spent = time.perf_counter() - self.began
            sys.stdout.write(f"round {spent}\n")
            sys.stdout.flush()
            if sys.stdin.readline().strip() != "go":
                os._exit(0)
            self.began = time.perf_counter()
        self.taken += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every way does: `recipe.global_batch` rows per step, shared by `world` ranks."""

    spec: NodeSpec
    recipe: RecipeSpec
    gate: Gate
    folder: Path

    @property
    def world(self) -> int:
        return int(os.environ["WORLD_SIZE"])

    def model(self) -> Decoder:
        model = make_decoder(model_config(self.recipe.model, 257), torch.device("cpu"))
        initialise(model, self.recipe.seed)
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.recipe.optimizer.lr, fused=True)

    def batches(self) -> Iterator[Tensor]:
        """This rank's rows of tokens [samples, sequence_length + 1], without end."""
        raw = bytearray(min(Path(self.spec.data_uri or "").glob("*.bin")).read_bytes())
        tokens = torch.frombuffer(raw, dtype=torch.uint16).long()
        rows, length = self.recipe.global_batch // self.world, self.recipe.sequence_length + 1
        start = int(os.environ["RANK"]) * rows * length
        while True:
            start = (start + rows * length) % (len(tokens) - rows * length)
            yield tokens[start : start + rows * length].view(rows, length)

    @property
    def is_bf16(self) -> bool:
        return self.recipe.precision == "bf16"


def loss_of(model: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def loop(work: Work, model: nn.Module, optimizer: Any, backward: Callable[[Tensor], None]) -> None:
    """Forward, backward, clip, step: what all but the recipe and the Trainer have in common."""
    bf16 = torch.autocast("cpu", torch.bfloat16) if work.is_bf16 else nullcontext()
    for ids in work.batches():
        work.gate.step()
        with bf16:
            loss = loss_of(model, ids)
        optimizer.zero_grad()
        backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()


def bare(work: Work) -> None:
    """One process, by hand."""
    model = work.model()
    loop(work, model, work.optimizer(model), lambda loss: loss.backward())


def ddp(work: Work) -> None:
    """torch's DistributedDataParallel, by hand."""
    dist.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(work.model())
    loop(work, model, work.optimizer(model), lambda loss: loss.backward())


def fsdp(work: Work) -> None:
    """torch's fully_shard, block by block, by hand."""
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    model = work.model()
    for block in model.layers.values():
        fully_shard(block)
    fully_shard(model)
    loop(work, model, work.optimizer(model), lambda loss: loss.backward())


def recipe(work: Work) -> None:
    """Ours: the recipe's own loop with its data, numbers and log."""
    from llmctl.worker.job import Job
    from llmctl.worker.loop import Loop
    from llmctl.worker.metrics import Metrics
    from llmctl.worker.recipe import build
    from llmctl.worker.session import open_session
    from llmctl.worker.stop import StopSignal

    session = open_session(work.spec)
    run = work.folder / "run"
    run.mkdir(exist_ok=True)
    metrics = Metrics(path=str(run / "metrics.jsonl") if session.is_first else None, speaks=False)
    job = Job(
        spec=work.spec,
        recipe=work.recipe,
        session=session,
        run_dir=str(run),
        metrics=metrics,
        stop=StopSignal(),
    )
    ours = Loop(build(job))
    while True:
        work.gate.step()
        ours.advance()


def accelerate(work: Work) -> None:
    """Hugging Face Accelerate."""
    from accelerate import Accelerator

    own = Accelerator(cpu=True, mixed_precision="bf16" if work.is_bf16 else "no")
    model = work.model()
    prepared, optimizer = own.prepare(model, work.optimizer(model))
    for ids in work.batches():
        work.gate.step()
        with own.autocast():
            loss = loss_of(prepared, ids)
        optimizer.zero_grad()
        own.backward(loss)
        own.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
        loss.item()


def fabric(work: Work) -> None:
    """Lightning Fabric."""
    from lightning_fabric import Fabric

    own = Fabric(
        accelerator="cpu",
        devices=work.world,
        strategy="ddp" if work.world > 1 else "auto",
        precision="bf16-mixed" if work.is_bf16 else "32-true",
    )
    own.launch()
    model = work.model()
    prepared, optimizer = own.setup(model, work.optimizer(model))
    for ids in work.batches():
        work.gate.step()
        loss = loss_of(prepared, ids)
        optimizer.zero_grad()
        own.backward(loss)
        own.clip_gradients(prepared, optimizer, max_norm=1.0)
        optimizer.step()
        loss.item()


def trainer(work: Work) -> None:
    """The transformers Trainer with its defaults, but for checkpoints and reports."""
    from torch.utils.data import IterableDataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Rows(IterableDataset[dict[str, Tensor]]):
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for ids in work.batches():
                yield from ({"ids": row} for row in ids)

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = work.model()

        def forward(self, ids: Tensor) -> dict[str, Tensor]:
            return {"loss": loss_of(self.inner, ids)}

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            work.gate.step()

    arguments = TrainingArguments(
        output_dir=str(work.folder / "trainer"),
        per_device_train_batch_size=work.recipe.global_batch // work.world,
        max_steps=1_000_000,
        learning_rate=work.recipe.optimizer.lr,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        use_cpu=True,
        bf16=work.is_bf16,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    Trainer(WithLoss(), arguments, train_dataset=Rows(), callbacks=[Turns()]).train()


WAYS = {way.__name__: way for way in (bare, ddp, fsdp, recipe, accelerate, fabric, trainer)}


def main(way: str, settings: Path) -> None:
    told = json.loads(settings.read_text())
    recipe_spec = decode(RecipeSpec, told["recipe"])
    layout = decode(ParallelSpec, told["parallel"]) if told["parallel"] else None
    torch.set_num_threads(recipe_spec.threads or 1)
    torch.manual_seed(0)
    work = Work(
        spec=decode(NodeSpec, told["spec"]),
        recipe=RecipeSpec(**{**vars(recipe_spec), "parallel": layout}),
        gate=Gate(warm_up=told["warm_up"], steps=told["steps"]),
        folder=settings.parent,
    )
    WAYS[way](work)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
