"""`parallel:` of a job and the ranks that there are -> the layout, or why there is none. Pure."""

from __future__ import annotations

from llmctl.controller.config.models import JobFile, ParallelSection
from llmctl.controller.plan.refusals import Refusal, Site, nearest, refusal
from llmctl.errors import ConfigError
from llmctl.wire.model import ModelConfig, model_config
from llmctl.wire.parallel import ParallelSpec
from llmctl.wire.recipe import ModelSpec, RecipeSpec

SOME_TOKENS = 64
"""Stands for the vocabulary, which only the corpus knows: it is always padded to a multiple of this."""


def layout_of(job: JobFile, recipe: RecipeSpec, site: Site, *, known: bool = True) -> ParallelSpec | None:
    """The layout that the job asks for; None: whole copies on all ranks, as without `parallel`.

    Args:
        known: the model is the decoder that the recipe describes.

    Raises:
        ConfigError: it can't work; with the reason and the nearest one that can.
    """
    section = job.parallel
    if section is None or section.auto:
        return None
    if section.cp > 1:
        raise ConfigError(
            "parallel.cp: context parallel is not supported; torch has no sharded attention for CPUs",
            hint="tp with sequence_parallel also splits the sequence: parallel: {tp: 2}",
            stage="plan",
        )
    spec = spec_of(section, site.world)
    model = shape_of(recipe.model) if known else None
    found = refusal(spec, model, recipe, site)
    if found is not None:
        raise _refused(found, nearest(spec, model, recipe, site))
    return None if spec == ParallelSpec(dp_replicate=site.world) else spec


def script_layout(job: JobFile, recipe: RecipeSpec, site: Site) -> ParallelSpec | None:
    """The same for a model of the script's own, of whose shape nothing is known here.

    Raises:
        ConfigError: `auto`, or sizes that can't work whatever the model.
    """
    if job.parallel is None:
        return None
    if job.parallel.auto:
        raise ConfigError(
            "parallel: auto needs the model's shape, which only the script knows",
            hint="write the sizes: parallel: {dp_shard: 2}",
            stage="plan",
        )
    return layout_of(job, recipe, site, known=False)


def spec_of(section: ParallelSection, world: int) -> ParallelSpec:
    """The sizes written down, with the copies that fill up `world` where none are."""
    rest = section.pp * section.dp_shard * section.tp
    virtual = section.virtual_stages
    return ParallelSpec(
        pp=section.pp,
        dp_replicate=section.dp_replicate or max(1, world // rest),
        dp_shard=section.dp_shard,
        tp=section.tp,
        schedule=section.schedule if virtual == 1 else "interleaved",
        virtual_stages=2 if section.schedule == "interleaved" and virtual == 1 else virtual,
        sequence_parallel=section.sequence_parallel,
        loss_parallel=section.loss_parallel,
    )


def shape_of(model: ModelSpec) -> ModelConfig | None:
    """The model's shape, but for the true vocabulary; None where only the hosts can read it."""
    return None if model.source else model_config(model, SOME_TOKENS)


def text_of(spec: ParallelSpec) -> str:
    """`parallel: {dp_shard: 2, tp: 2}`: what a person would write for it."""
    plain = ParallelSpec()
    names = ("pp", "dp_replicate", "dp_shard", "tp", "schedule", "virtual_stages", "sequence_parallel")
    given = [(name, getattr(spec, name)) for name in names if getattr(spec, name) != getattr(plain, name)]
    parts = [f"{name}: {str(value).lower()}" for name, value in given]
    return f"parallel: {{{', '.join(parts)}}}"


def _refused(found: Refusal, other: ParallelSpec | None) -> ConfigError:
    hints = [found.change] if found.change else []
    if other is not None:
        hints.append(f"nearest layout that works: {text_of(other)}")
    return ConfigError(f"parallel: {found.reason}", hint="; or ".join(hints) or None, stage="plan")
