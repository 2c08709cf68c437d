"""`prepare`: a model, a loss and samples of your own become the same kind of training as the recipe's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from llmctl.errors import ConfigError
from llmctl.wire.manifests import BaseWeights, CheckpointManifest
from llmctl.worker.checkpoint.load import Found
from llmctl.worker.consumption import Consumption
from llmctl.worker.job import Job
from llmctl.worker.loop import Loop, finish
from llmctl.worker.metrics import human_count
from llmctl.worker.own.data import OwnBatches, Samples
from llmctl.worker.own.loss import LossSum, SampleLoss
from llmctl.worker.own.model import OwnArchitecture
from llmctl.worker.own.plan import Plan
from llmctl.worker.parallel.layout import Layout
from llmctl.worker.trainer import Setup, Training, assemble, changed_settings, check_recipe

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def prepare(
    job: Job, *, model: Callable[[], nn.Module], loss: LossSum, data: Samples, plan: Plan | None = None
) -> Run:
    """Spread the model as the job's `parallel:` says, and resume from a checkpoint if any. All ranks call it.

    Args:
        model: makes the model, with its first weights. It is called once, under the recipe's seed.
        loss: (outputs, targets) of some samples -> the *sum* of their losses; the mean over the global batch
            is what is minimised.
        data: samples by number; each is (input, target), tensors of one shape each.
        plan: which layers tp, dp_shard and pp may share; whole copies need none.

    Raises:
        LlmctlError: settings, model, data or checkpoints are not fit.
    """
    check_recipe(job.recipe)
    _check_settings(job)
    if len(data) == 0:
        raise ConfigError("there are no samples", stage="data")
    architecture = OwnArchitecture(make=model, plan=plan or Plan())
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in model().named_parameters()}
    subject = Own(job=job, architecture=architecture, loss=loss, data=data, shapes=shapes)
    return Run(assemble(job, subject))


def _check_settings(job: Job) -> None:
    """Settings of the decoder can't be had for any model: refused, not ignored."""
    recipe = job.recipe
    wrong = {
        "lora": recipe.lora is not None,
        "model.from": recipe.model.source is not None,
        "dropout": recipe.dropout > 0,
        "activation_checkpointing": recipe.activation_checkpointing != "none",
        "aggregation": recipe.aggregation == "mean",
    }
    for name, is_set in wrong.items():
        if is_set:
            raise ConfigError(f"recipe.{name} is for the built-in decoder, not for a model of your own")


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """See `trainer.Subject`. `shapes`: of the whole model's parameters."""

    job: Job
    architecture: OwnArchitecture
    loss: LossSum
    data: Samples
    shapes: dict[str, tuple[int, ...]]

    @property
    def model_info(self) -> dict[str, object]:
        return {"parameters": {name: list(shape) for name, shape in self.shapes.items()}}

    @property
    def data_info(self) -> dict[str, object]:
        return {"samples": len(self.data), "parameters": self.learning}

    @property
    def base(self) -> BaseWeights | None:
        return None

    @property
    def learning(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def introduction(self, job: Job) -> str:
        """See Subject."""
        return (
            f"{job.spec.launch.command[0]}: {human_count(self.learning)} parameters, {{ranks}}, "
            f"batch {job.recipe.global_batch} of {len(self.data)} samples"
        )

    def objective(self, layout: Layout) -> SampleLoss:
        """See Subject."""
        return SampleLoss(self.loss)

    def check_resume(self, found: Found) -> None:
        """See Subject."""
        before = found.manifest.model.get("parameters")
        if before != self.model_info["parameters"]:
            raise ConfigError(
                f"checkpoint {found.step} is of another model: its parameters have other names or shapes",
                hint="set checkpoint.uri to another folder, or resume: false",
                stage="checkpoint",
            )

    def give(self, setup: Setup, found: Found | None) -> None:
        """Nothing: the model brings its first weights."""

    def changed_order(self, saved: CheckpointManifest) -> list[str]:
        """See Subject."""
        changed = changed_settings(saved, self.job.recipe, ("seed", "global_batch"))
        return changed + (["the data"] if saved.data.get("samples") != len(self.data) else [])

    def batches(self, device: torch.device, rank: int, ranks: int, start_step: int) -> OwnBatches:
        """See Subject."""
        return OwnBatches(self.data, self.job.recipe, device, rank, ranks, start_step)

    def consumption(self, setup: Setup, found: Found | None) -> Consumption | None:
        """None: a journal names places in token shards."""
        return None

    def extra_files(self) -> dict[str, bytes]:
        """None."""
        return {}


class Run:
    """A prepared training. `train()` does all of it; the pieces are here for a loop of your own.

    Attributes:
        model: this rank's part; parameters have the whole model's names, shards are DTensors.
        mesh: of (pp, dp_replicate, dp_shard, tp); None where every rank has a whole copy.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._loop = Loop(training)
        self.model = training.model
        self.mesh: DeviceMesh | None = training.layout.mesh

    @property
    def done(self) -> int:
        """Optimizer steps that lie behind, those before a resume included."""
        return self._loop.done

    @property
    def goes_on(self) -> bool:
        """Steps are left and nobody has asked for the end; the same on all ranks."""
        return self._loop.goes_on

    def step(self) -> None:
        """Train one step on the next batch: gradients over all ranks, clipping, update, metrics, and a
        checkpoint where `checkpoint.every` wants one. All ranks call it.

        Raises:
            JobFailedError: the loss is no number.
        """
        self._loop.advance()

    def save(self) -> None:
        """Begin a checkpoint of the state after the last step. All ranks call it."""
        self._loop.save()

    def note(self, text: str) -> None:
        """A line for the log and `llmctl status`; of rank 0 only."""
        self._training.job.metrics.note(text)

    def train(self) -> int:
        """Take the steps that are left, save the last state, wait until it is committed, and return the exit
        code: 0, or 143 where SIGTERM came first. All ranks call it, once, after steps of their own too."""
        return finish(self._loop)
