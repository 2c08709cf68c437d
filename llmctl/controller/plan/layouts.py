"""Every layout of a fleet's ranks, judged: what it needs, how long a step takes, or why it can't work. Pure.

A layout is judged with the job's own micro-batch and recomputation where it fits with them, else with the
fastest of the smaller micro-batches and of more recomputation that fits: neither changes the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from llmctl.controller.plan.cost import Group, StepTime, estimate_time, groups
from llmctl.controller.plan.machines import Fleet
from llmctl.controller.plan.memory import Memory, estimate_memory
from llmctl.controller.plan.refusals import Site, refusal
from llmctl.wire.model import ModelConfig
from llmctl.wire.parallel import ParallelSpec, micro_batches_per_step
from llmctl.wire.recipe import RecipeSpec

RECOMPUTATION = ("none", "selective", "full")


class Verdict(StrEnum):
    FITS = "fits"
    TOO_LARGE = "does not fit"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One layout and what becomes of it.

    Attributes:
        memory, time: None for a refused one.
        capacity: bytes that a rank has.
        passes: micro-batches per step and rank.
        as_asked: with the job's own micro-batch and recomputation.
        why: what is missing, or why it is refused; empty where it fits.
    """

    spec: ParallelSpec
    verdict: Verdict
    micro_batch: int
    checkpointing: str
    passes: int
    capacity: int
    memory: Memory | None = None
    time: StepTime | None = None
    as_asked: bool = True
    why: str = ""

    @property
    def fits(self) -> bool:
        return self.verdict is Verdict.FITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be trained where.

    Attributes:
        model: None where only the hosts can read its shape; then there is nothing to judge.
        shared_checkpoints: all hosts see one place for checkpoints.
    """

    model: ModelConfig | None
    recipe: RecipeSpec
    fleet: Fleet
    shared_checkpoints: bool = True

    @property
    def site(self) -> Site:
        return Site(
            world=self.fleet.world,
            hosts=len(self.fleet.machines),
            shared_checkpoints=self.shared_checkpoints,
        )


def judge_all(question: Question) -> tuple[Row, ...]:
    """A row for every layout: those that fit, fastest first; those that don't, nearest first; the refused.
    None at all for a model whose shape is not known."""
    if question.model is None:
        return ()
    rows = [judge(question, spec) for spec in every_layout(question.fleet.world)]
    order = list(Verdict)
    return tuple(sorted(rows, key=lambda row: (order.index(row.verdict), _merit(row), row.spec.sizes)))


def _merit(row: Row) -> float:
    if row.memory is None or row.time is None:
        return 0.0
    return row.time.total if row.fits else float(row.memory.total)


def every_layout(world: int) -> Iterator[ParallelSpec]:
    """Every way to write `world` as pp x dp_replicate x dp_shard x tp."""
    for pp in _divisors(world):
        for tp in _divisors(world // pp):
            for shard in _divisors(world // pp // tp):
                copies = world // pp // tp // shard
                yield ParallelSpec(pp=pp, dp_replicate=copies, dp_shard=shard, tp=tp)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def judge(question: Question, spec: ParallelSpec) -> Row:
    """The best settings for one layout: the job's own if it fits with them, else the fastest that fit, else
    those that need least."""
    recipe = question.recipe
    straddles = _straddles(question.fleet, spec)
    if straddles:
        return _refused(question, spec, straddles)
    along = groups(question.fleet, spec)
    first = _with_settings(question, spec, recipe, along)
    if first.fits:
        return first
    rows = [
        replace(_with_settings(question, spec, other, along), as_asked=False)
        for other in _other_settings(recipe)
    ]
    fitting = [row for row in rows if row.fits]
    if fitting:
        return min(fitting, key=_merit)
    large = [row for row in (first, *rows) if row.verdict is Verdict.TOO_LARGE]
    return min(large, key=_merit) if large else first


def _other_settings(recipe: RecipeSpec) -> Iterator[RecipeSpec]:
    """Smaller micro-batches and more recomputation, the job's own left out."""
    size = recipe.micro_batch
    while size >= 1:
        for setting in RECOMPUTATION[RECOMPUTATION.index(recipe.activation_checkpointing) :]:
            if (size, setting) != (recipe.micro_batch, recipe.activation_checkpointing):
                yield replace(recipe, micro_batch=size, activation_checkpointing=setting)
        size //= 2


def _with_settings(
    question: Question, spec: ParallelSpec, recipe: RecipeSpec, along: dict[str, Group]
) -> Row:
    found = refusal(spec, question.model, recipe, question.site)
    if found is not None:
        change = f" ({found.change})" if found.change else ""
        return _refused(question, spec, found.reason + change)
    device, model = question.fleet.slowest, question.model
    assert model is not None  # noqa: S101 - judge_all has looked
    memory = estimate_memory(model, recipe, spec, is_cpu=device.is_cpu)
    missing = memory.total - device.memory
    return Row(
        spec=spec,
        verdict=Verdict.TOO_LARGE if missing > 0 else Verdict.FITS,
        micro_batch=recipe.micro_batch,
        checkpointing=recipe.activation_checkpointing,
        passes=micro_batches_per_step(spec, recipe.global_batch, recipe.micro_batch),
        capacity=device.memory,
        memory=memory,
        time=estimate_time(model, recipe, spec, question.fleet, along),
        why=f"{_gigabytes(missing)} more per rank needed" if missing > 0 else "",
    )


def _refused(question: Question, spec: ParallelSpec, why: str) -> Row:
    recipe = question.recipe
    return Row(
        spec=spec,
        verdict=Verdict.REFUSED,
        micro_batch=recipe.micro_batch,
        checkpointing=recipe.activation_checkpointing,
        passes=micro_batches_per_step(spec, recipe.global_batch, recipe.micro_batch),
        capacity=question.fleet.slowest.memory,
        why=why,
    )


def _straddles(fleet: Fleet, spec: ParallelSpec) -> str:
    """Why the tp ranks of some matrix would lie on two hosts; empty where they don't."""
    first = 0
    for machine in fleet.machines:
        if first % spec.tp or machine.ranks % spec.tp:
            return f"tp {spec.tp} would go over the network: {machine.host} has {machine.ranks} ranks"
        first += machine.ranks
    return ""


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"
