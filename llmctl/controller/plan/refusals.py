"""Which layouts can't work, why, and what comes nearest. Pure: asked before anything starts.

Each rule is a fact about the recipe or about torch 2.13, not a matter of taste: what merely would be slow is
the cost model's business. Measured facts behind them: docs/decisions/0010.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from llmctl.wire.model import ModelConfig
from llmctl.wire.parallel import SCHEDULES, ParallelSpec, micro_batches_per_step, schedule_fits
from llmctl.wire.recipe import RecipeSpec
from llmctl.wire.stages import misfit


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the rules must know of where a job runs.

    Attributes:
        hosts: how many; `shared_checkpoints`: all of them can see one place for checkpoints.
    """

    world: int
    hosts: int = 1
    shared_checkpoints: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """`reason`: why a layout can't work; `change`: what to change besides the layout itself, if anything."""

    reason: str
    change: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    spec: ParallelSpec
    model: ModelConfig | None
    recipe: RecipeSpec
    site: Site


def refuse(spec: ParallelSpec, model: ModelConfig, recipe: RecipeSpec, world: int) -> str | None:
    """Why `spec` can't train `model` on `world` ranks of one host; None where it can."""
    found = refusal(spec, model, recipe, Site(world=world))
    return found.reason if found else None


def refusal(spec: ParallelSpec, model: ModelConfig | None, recipe: RecipeSpec, site: Site) -> Refusal | None:
    """The first rule that `spec` breaks there; None where it can work.

    Args:
        model: its shape; None where only the hosts can read it, who then check the same.
    """
    case = _Case(spec=spec, model=model, recipe=recipe, site=site)
    for rule in RULES:
        found = rule(case)
        if found is not None:
            return found
    return None


def nearest(
    spec: ParallelSpec, model: ModelConfig | None, recipe: RecipeSpec, site: Site
) -> ParallelSpec | None:
    """The layout for all ranks of `site` that works and differs least from `spec`; None: there is none."""
    fitting = [other for other in _variants(spec, site.world) if refusal(other, model, recipe, site) is None]
    return min(fitting, key=lambda other: _distance(spec, other), default=None)


def _variants(spec: ParallelSpec, world: int) -> Iterator[ParallelSpec]:
    """Every way to cut `world` into four factors, with the other settings of `spec` where they apply."""
    for pp in _divisors(world):
        for tp in _divisors(world // pp):
            for dp_shard in _divisors(world // pp // tp):
                replicas = world // pp // tp // dp_shard
                cut = replace(spec, pp=pp, tp=tp, dp_shard=dp_shard, dp_replicate=replicas)
                yield cut
                if spec.schedule != "1f1b" or spec.virtual_stages != 1:
                    yield replace(cut, schedule="1f1b", virtual_stages=1)
                if spec.sequence_parallel and tp > 1:
                    yield replace(cut, sequence_parallel=False)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _distance(one: ParallelSpec, other: ParallelSpec) -> tuple[float, int]:
    """How far apart: the factors by which sizes differ, then the settings that do."""
    pairs = zip(one.sizes, other.sizes, strict=True)
    factors = sum(abs(math.log2(max(1, a) / max(1, b))) for a, b in pairs)
    settings = ("schedule", "virtual_stages", "sequence_parallel")
    return factors, sum(getattr(one, name) != getattr(other, name) for name in settings)


def _sizes(case: _Case) -> Refusal | None:
    for name in ("pp", "dp_replicate", "dp_shard", "tp", "virtual_stages"):
        if getattr(case.spec, name) < 1:
            return Refusal(reason=f"{name} must be at least 1")
    if case.spec.schedule not in SCHEDULES:
        return Refusal(reason=f"schedule {case.spec.schedule!r} is not one of {', '.join(SCHEDULES)}")
    if case.spec.world != case.site.world:
        product = " x ".join(str(size) for size in case.spec.sizes)
        return Refusal(
            reason=f"pp x dp_replicate x dp_shard x tp = {product} needs {case.spec.world} ranks, "
            f"there are {case.site.world}"
        )
    return None


def _shape(case: _Case) -> Refusal | None:
    if case.model is None:
        return None
    reason = misfit(case.spec, case.model, case.recipe.sequence_length)
    return Refusal(reason=reason) if reason else None


def _compile(case: _Case) -> Refusal | None:
    if case.spec.tp > 1 and case.recipe.compile:
        return Refusal(reason="torch.compile fails with tp (torch 2.13)", change="compile: false")
    return None


def _pipeline(case: _Case) -> Refusal | None:
    spec = case.spec
    if spec.pp > 1 and (spec.schedule == "interleaved") != (spec.virtual_stages > 1):
        return Refusal(
            reason=f"schedule {spec.schedule} with {spec.virtual_stages} virtual stages: "
            "interleaved needs at least 2, any other schedule has 1"
        )
    if spec.pp == 1 and spec.virtual_stages > 1:
        return Refusal(reason="virtual_stages without pp: there is no pipeline to interleave")
    return _enough_micro_batches(case) if spec.pp > 1 else None


def _enough_micro_batches(case: _Case) -> Refusal | None:
    spec, recipe = case.spec, case.recipe
    count = micro_batches_per_step(spec, recipe.global_batch, recipe.micro_batch)
    if schedule_fits(spec, count):
        return None
    needs = f"at least {spec.pp}" if spec.schedule == "1f1b" else f"a multiple of {spec.pp}"
    return Refusal(
        reason=f"{spec.schedule} over {spec.pp} ranks needs {needs} micro-batches a step, there are {count}",
        change=_smaller_micro_batch(case),
    )


def _smaller_micro_batch(case: _Case) -> str | None:
    """The largest smaller micro-batch that the schedule can work with."""
    for size in range(case.recipe.micro_batch - 1, 0, -1):
        if schedule_fits(case.spec, micro_batches_per_step(case.spec, case.recipe.global_batch, size)):
            return f"micro_batch: {size}"
    return None


def _adapters(case: _Case) -> Refusal | None:
    if case.recipe.lora is None or case.spec.pp == case.spec.tp == 1:
        return None
    return Refusal(reason="lora works on whole copies and with dp_shard, not with tp or pp")


def _checkpoints(case: _Case) -> Refusal | None:
    if case.spec.is_replicas or case.site.hosts == 1 or case.site.shared_checkpoints:
        return None
    return Refusal(
        reason="without a shared store each host keeps whole checkpoints, but here no host has a whole model",
        change="checkpoint.uri: a store that all hosts see",
    )


RULES: tuple[Callable[[_Case], Refusal | None], ...] = (
    _sizes,
    _pipeline,
    _shape,
    _compile,
    _adapters,
    _checkpoints,
)
