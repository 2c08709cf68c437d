"""The recipe of one run with its layout: the job's, or the planner's where it says `parallel: auto`. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from llmctl.controller.config.models import JobFile
from llmctl.controller.plan.choose import choose, way_out
from llmctl.controller.plan.layouts import Question, judge_all
from llmctl.controller.plan.machines import Given, probed_fleet
from llmctl.controller.plan.memory import estimate_memory
from llmctl.controller.plan.parallel import layout_of
from llmctl.controller.probe.facts import HostFacts
from llmctl.errors import ConfigError, PreflightError
from llmctl.wire.model import ModelConfig, model_config
from llmctl.wire.parallel import ParallelSpec
from llmctl.wire.recipe import RecipeSpec

USUAL_VOCABULARY = 32_000
"""Tokens, taken where the corpus can't be read from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The recipe that the ranks get, and the rule that chose its layout (empty: the job did)."""

    recipe: RecipeSpec
    why: str = ""


def planned_recipe(
    job: JobFile,
    recipe: RecipeSpec,
    ranks: Mapping[str, int],
    facts: Mapping[str, HostFacts],
    vocabulary: int | None,
    given: Given = Given(),  # noqa: B008 - frozen
    local: Collection[str] = (),
) -> Planned:
    """`recipe` with its layout, and with the memory that a rank should need where that can be known.

    Args:
        ranks: how many on each host, in rank order.
        vocabulary: tokens of the corpus; None: it can't be read from here.
        given: what was measured of the machines.
        local: hosts that are this machine.

    Raises:
        ConfigError: the layout that the job asks for can't work. PreflightError: `auto`, and none can.
    """
    fleet = probed_fleet(dict(ranks), dict(facts), given, local)
    question = Question(
        model=shape(recipe, vocabulary or USUAL_VOCABULARY),
        recipe=recipe,
        fleet=fleet,
        shared_checkpoints=job.checkpoint.uri is not None,
    )
    if job.parallel is not None and job.parallel.auto:
        found = _chosen(question)
    else:
        found = Planned(recipe=replace(recipe, parallel=layout_of(job, recipe, question.site)))
    if vocabulary is None or question.model is None:
        return found
    spec = found.recipe.parallel or ParallelSpec(dp_replicate=fleet.world)
    memory = estimate_memory(question.model, found.recipe, spec, is_cpu=fleet.slowest.is_cpu)
    return replace(found, recipe=replace(found.recipe, planned_memory=memory.total))


def shape(recipe: RecipeSpec, vocabulary: int) -> ModelConfig | None:
    """The model over so many tokens; None for `model.from`, whose shape lies with its weights."""
    return None if recipe.model.source else model_config(recipe.model, vocabulary)


def _chosen(question: Question) -> Planned:
    if question.model is None:
        raise ConfigError(
            "parallel: auto needs the model's shape, and that of `recipe.model.from` lies with its weights",
            hint="write the sizes down: parallel: {dp_shard: 2}",
            stage="plan",
        )
    choice = choose(judge_all(question))
    if choice.row is None:
        raise PreflightError(
            f"parallel: auto: {choice.why}",
            hint=f"{way_out(question)}; llmctl plan shows every layout",
            stage="plan",
        )
    row = choice.row
    spec = None if row.spec.is_replicas else row.spec
    recipe = replace(
        question.recipe,
        parallel=spec,
        micro_batch=row.micro_batch,
        activation_checkpointing=row.checkpointing,
    )
    return Planned(recipe=recipe, why=f"{row.spec.name}: {choice.why}")
