"""A training put together: a subject (model, loss, data) in the job's layout, resumed where it can be.

The built-in recipe (`recipe.py`) and a model of your own (`own/`) are subjects; all else is one for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from llmctl.errors import ConfigError
from llmctl.storage.corpus.loader import StepBatch
from llmctl.storage.corpus.order import SampleRef
from llmctl.wire.codec import encode
from llmctl.wire.manifests import BaseWeights, CheckpointManifest
from llmctl.wire.recipe import RecipeSpec
from llmctl.worker.checkpoint.load import Found, find_latest, restore
from llmctl.worker.checkpoint.place import Place, check_room, open_place
from llmctl.worker.checkpoint.save import Saver
from llmctl.worker.checkpoint.setup import open_saver
from llmctl.worker.checkpoint.state import training_tensors
from llmctl.worker.consumption import Consumption
from llmctl.worker.job import Job
from llmctl.worker.objective import Loss
from llmctl.worker.optim import AdamW
from llmctl.worker.parallel.architecture import Architecture
from llmctl.worker.parallel.layout import Layout, open_layout
from llmctl.worker.precision import MixedPrecision, bf16_is_fast, choose_precision
from llmctl.worker.selfcheck import SelfCheck
from llmctl.worker.step import Batch, Stepper, StepResult

STATE_BYTES = 12
"""Bytes per parameter in a checkpoint: the fp32 weight and Adam's two moments."""


class Source(Protocol):
    """A data rank's share of each step.

    Attributes:
        taken: what the last batch was made of, where a journal is kept of it.
        wait_s: seconds that the last batch made the step wait.
    """

    @property
    def taken(self) -> StepBatch: ...

    @property
    def wait_s(self) -> float: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def samples_of(self, step: int) -> Sequence[SampleRef]:
        """All samples of step `step` (counted from 1), of all ranks."""

    def close(self) -> None:
        """Stop reading ahead."""


class Subject(Protocol):
    """What is trained."""

    @property
    def architecture(self) -> Architecture:
        """The model before it is made."""

    @property
    def model_info(self) -> dict[str, object]:
        """Describes the model in every checkpoint."""

    @property
    def data_info(self) -> dict[str, object]:
        """Describes the data in every checkpoint."""

    @property
    def base(self) -> BaseWeights | None:
        """Of adapters, the weights that they sit on."""

    @property
    def learning(self) -> int:
        """Numbers that learn."""

    def introduction(self, job: Job) -> str:
        """Model and batch, for the log's first line; `{ranks}` stands for the ranks."""

    def objective(self, layout: Layout) -> Loss:
        """The loss as ranks of `layout` compute it."""

    def check_resume(self, found: Found) -> None:
        """Refuse another model's checkpoint. Raises ConfigError."""

    def give(self, setup: Setup, found: Found | None) -> None:
        """Fill in the weights that are neither random nor the checkpoint's."""

    def changed_order(self, saved: CheckpointManifest) -> list[str]:
        """What differs now of all that decides which samples a step takes; names for people."""

    def batches(self, device: torch.device, rank: int, ranks: int, start_step: int) -> Source:
        """The share of data rank `rank` of `ranks`, from `start_step` on."""

    def consumption(self, setup: Setup, found: Found | None) -> Consumption | None:
        """The journal of this rank's samples, where it keeps one. All ranks call it."""

    def extra_files(self) -> dict[str, bytes]:
        """Small files of every checkpoint, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A training that is being put together: what its parts need of one another."""

    job: Job
    subject: Subject
    layout: Layout
    precision: MixedPrecision
    model: nn.Module
    optimizer: AdamW
    place: Place

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint holds."""
        return training_tensors(self.model, self.optimizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Everything that a training loop works with; `done` steps lie behind it."""

    job: Job
    layout: Layout
    model: nn.Module
    optimizer: AdamW
    stepper: Stepper
    batches: Source
    consumption: Consumption | None
    saver: Saver
    done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A step whose numbers have not been read yet."""

    step: int
    lr: float
    wait_s: float
    result: StepResult


def check_recipe(recipe: RecipeSpec) -> None:
    """Refuse numbers that can't mean anything.

    Raises:
        ConfigError: names the field.
    """
    lowest = {
        "steps": 1,
        "global_batch": 1,
        "micro_batch": 1,
        "sequence_length": 1,
        "keep": 1,
        "log_every": 1,
    }
    for name, limit in lowest.items():
        if getattr(recipe, name) < limit:
            raise ConfigError(f"recipe.{name}: must be at least {limit}, not {getattr(recipe, name)}")
    if len(recipe.optimizer.betas) != 2:
        raise ConfigError(f"recipe.optimizer.betas: needs two numbers, not {len(recipe.optimizer.betas)}")


def assemble(job: Job, subject: Subject) -> Training:
    """Make the model, open checkpoints, and resume where there is something to resume. All ranks call it.

    Raises:
        LlmctlError: settings, data or checkpoints are not fit.
    """
    setup = _set_up(job, subject)
    found = _start_state(setup)
    done = found.step if found else 0
    stepper = make_stepper(setup)
    if job.recipe.self_check:
        job.metrics.note(_self_check(setup, stepper, done).run().line())
    layout = setup.layout
    return Training(
        job=job,
        layout=layout,
        model=setup.model,
        optimizer=setup.optimizer,
        stepper=stepper,
        batches=subject.batches(job.session.device, layout.data_rank, layout.data_ranks, done),
        consumption=subject.consumption(setup, found),
        saver=_open_saver(setup, done),
        done=done,
    )


def _set_up(job: Job, subject: Subject) -> Setup:
    recipe, session = job.recipe, job.session
    precision = _choose_precision(job)
    layout = open_layout(recipe, session)
    _introduce(job, subject, precision, layout)
    model = layout.model(subject.architecture, recipe, precision)
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return Setup(
        job=job,
        subject=subject,
        layout=layout,
        precision=precision,
        model=model,
        optimizer=AdamW(learning, recipe.optimizer),
        place=open_place(session, job.spec, job.run_dir),
    )


def make_stepper(setup: Setup) -> Stepper:
    """What runs the steps of the model in its layout."""
    layout, recipe, model = setup.layout, setup.job.recipe, setup.model
    objective, gradients = setup.subject.objective(layout), layout.gradients(model)
    return Stepper(
        runner=layout.runner(model, recipe, gradients, setup.precision, objective),
        optimizer=setup.optimizer,
        gradients=gradients,
        objective=objective,
        world=setup.job.session.world,
        counts=layout.counts,
    )


def _self_check(setup: Setup, stepper: Stepper, done: int) -> SelfCheck:
    def batch_of(rank: int, ranks: int) -> Batch:
        batches = setup.subject.batches(setup.job.session.device, rank, ranks, done)
        try:
            return next(iter(batches))
        finally:
            batches.close()

    return SelfCheck(
        layout=setup.layout,
        session=setup.job.session,
        model=setup.model,
        stepper=stepper,
        architecture=setup.subject.architecture,
        objective_of=setup.subject.objective,
        recipe=setup.job.recipe,
        precision=setup.precision,
        batch_of=batch_of,
    )


def _open_saver(setup: Setup, done: int) -> Saver:
    job = setup.job
    return open_saver(
        job.spec,
        job.recipe,
        job.session,
        setup.place,
        job.metrics,
        run_dir=job.run_dir,
        tensors=setup.tensors(),
        whole_copies=setup.layout.spec.is_replicas,
        start=done,
        template=_marker_template(job, setup.subject),
        extra_files=setup.subject.extra_files() if job.session.leader else {},
    )


def _start_state(setup: Setup) -> Found | None:
    """Give all ranks one state: the newest checkpoint's, which is returned, else rank 0's first weights."""
    job, subject, place = setup.job, setup.subject, setup.place
    _check_whole_copies(setup.layout, place)
    warning = check_room(job.session, place, STATE_BYTES * subject.learning)
    if warning:
        job.metrics.note(warning)
    found = _find_resume(job, place)
    if found is not None:
        subject.check_resume(found)
    subject.give(setup, found)
    if found is None or job.recipe.lora is not None:
        setup.layout.align(setup.model)
    if found is None:
        return None
    restore(job.session, place, found, setup.tensors(), job.session.device)
    job.metrics.note(f"resumed from checkpoint {found.step} of {found.manifest.run_id}")
    changed = subject.changed_order(found.manifest)
    if changed:
        job.metrics.note(f"samples may repeat or be left out after this resume: {', '.join(changed)} changed")
    return found


def _check_whole_copies(layout: Layout, place: Place) -> None:
    """Without a shared place each host keeps a whole checkpoint, which only whole models can give it."""
    if not (place.shared or layout.spec.is_replicas):
        raise ConfigError(
            f"{layout.spec.name} over several hosts needs one place for checkpoints that all of them see; "
            f"{place.store.uri} is another folder on each",
            hint="set checkpoint.uri to a shared folder, hdfs:// or s3://",
            stage="checkpoint",
        )


def changed_settings(saved: CheckpointManifest, recipe: RecipeSpec, names: Sequence[str]) -> list[str]:
    """Which of these settings of the recipe the checkpoint was trained with other values of."""
    now = encode(recipe)
    return [name for name in names if saved.recipe.get(name, now[name]) != now[name]]


def _marker_template(job: Job, subject: Subject) -> CheckpointManifest:
    """COMMIT.json but for step, time and files: enough to build the model without the job."""
    return CheckpointManifest(
        run_id=job.spec.run_id,
        attempt=job.spec.attempt,
        step=0,
        world_size=job.session.world,
        created_at=0.0,
        files=(),
        model=subject.model_info,
        recipe=encode(job.recipe),
        data=subject.data_info,
        base=subject.base,
    )


def _choose_precision(job: Job) -> MixedPrecision:
    fast = all(job.session.gather(bf16_is_fast(job.session.device)))
    return choose_precision(job.recipe.precision, job.session.device.type, fast_everywhere=fast)


def _introduce(job: Job, subject: Subject, precision: MixedPrecision, layout: Layout) -> None:
    """Whole copies need no word of their own."""
    spread = "" if layout.spec.is_replicas else f" ({layout.spec.name})"
    ranks = f"{job.session.world} ranks on {job.session.device.type}{spread}"
    job.metrics.note(
        f"{subject.introduction(job).format(ranks=ranks)}, "
        f"{precision.name} ({precision.reason}), {_threads()} per rank"
    )


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' * (count != 1)}"


def _find_resume(job: Job, place: Place) -> Found | None:
    """What to resume from. `resume: false` refuses a place that holds another training's checkpoints,
    because theirs and ours would be pruned and resumed as one; an earlier attempt's are our own."""
    found = find_latest(job.session, place)
    is_own = found is not None and found.manifest.run_id == job.spec.run_id and job.spec.attempt > 1
    if found is None or job.recipe.resume or is_own:
        return found
    raise ConfigError(
        f"{place.store.uri} holds checkpoint {found.step} of {found.manifest.run_id}, and resume is off",
        hint="set checkpoint.uri to another folder, or remove the checkpoints there",
        stage="checkpoint",
    )
