"""Layouts that can't work are refused with a reason, and what is offered instead does work."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.controller.config.checking import check
from llmctl.controller.config.models import JobFile
from llmctl.controller.plan.parallel import layout_of, spec_of, text_of
from llmctl.controller.plan.plan import recipe_spec
from llmctl.controller.plan.refusals import Site, nearest, refusal, refuse
from llmctl.errors import ConfigError
from llmctl.wire.model import ModelConfig
from llmctl.wire.parallel import SCHEDULES, ParallelSpec
from llmctl.wire.recipe import RecipeSpec

MODEL = ModelConfig(vocab_size=320, dim=64, layers=6, heads=8, kv_heads=4, ffn_dim=128)
RECIPE = RecipeSpec(global_batch=16, micro_batch=2, sequence_length=64)

SIZES = st.sampled_from([1, 2, 3, 4, 8])
SPECS = st.builds(
    ParallelSpec,
    pp=SIZES,
    dp_replicate=SIZES,
    dp_shard=SIZES,
    tp=SIZES,
    schedule=st.sampled_from(SCHEDULES),
    virtual_stages=st.sampled_from([1, 2]),
)


@pytest.mark.parametrize(
    ("spec", "recipe", "words"),
    [
        (ParallelSpec(pp=2, tp=4), RECIPE, "needs 8 ranks, there are 4"),
        (ParallelSpec(dp_replicate=0, tp=4), RECIPE, "dp_replicate must be at least 1"),
        (ParallelSpec(tp=4), replace(RECIPE, sequence_length=66), "does not divide sequence_length 66"),
        (ParallelSpec(tp=4), replace(RECIPE, compile=True), "torch.compile fails with tp"),
        (ParallelSpec(pp=4), replace(RECIPE, micro_batch=8), "at least 4 micro-batches"),
        (ParallelSpec(pp=4, schedule="interleaved", virtual_stages=2), RECIPE, "8 pipeline stages for 6"),
        (ParallelSpec(pp=4, virtual_stages=2), RECIPE, "interleaved needs at least 2"),
        (ParallelSpec(dp_shard=4, virtual_stages=2), RECIPE, "no pipeline to interleave"),
        (ParallelSpec(pp=4, schedule="zb"), RECIPE, "schedule 'zb'"),
    ],
)
def test_the_reason_names_what_does_not_fit(spec: ParallelSpec, recipe: RecipeSpec, words: str) -> None:
    """Each rule says which numbers clash."""
    assert words in (refuse(spec, MODEL, recipe, 4) or "")


@pytest.mark.parametrize("field", ["heads", "kv_heads", "ffn_dim", "vocab_size"])
def test_tp_must_divide_every_matrix(field: str) -> None:
    """The first width that tp 32 does not divide is named."""
    wide = {"heads": 32, "kv_heads": 32, "ffn_dim": 512, "vocab_size": 640}
    narrow = {"kv_heads": 8, field: 8} if field == "heads" else {field: 8}
    model = ModelConfig(dim=640, layers=2, **(wide | narrow))
    assert field in (refuse(ParallelSpec(tp=32), model, RECIPE, 32) or "")


@pytest.mark.parametrize(
    "spec",
    [ParallelSpec(dp_replicate=4), ParallelSpec(dp_shard=2, tp=2), ParallelSpec(pp=2, dp_shard=2)],
)
def test_what_works_is_not_refused(spec: ParallelSpec) -> None:
    """The rules let through what the layout tests train."""
    assert refuse(spec, MODEL, RECIPE, 4) is None


def test_shards_need_a_place_that_all_hosts_see() -> None:
    """Over two hosts without a shared store only whole copies can be saved."""
    site = Site(world=4, hosts=2, shared_checkpoints=False)
    assert refusal(ParallelSpec(dp_replicate=4), MODEL, RECIPE, site) is None
    found = refusal(ParallelSpec(dp_shard=4), MODEL, RECIPE, site)
    assert found is not None
    assert "checkpoint.uri" in (found.change or "")


def test_a_smaller_micro_batch_is_offered() -> None:
    """Where the pipeline has too few micro-batches, the change that gives it enough is named, and works."""
    recipe = replace(RECIPE, micro_batch=8)
    found = refusal(ParallelSpec(pp=4), MODEL, recipe, Site(world=4))
    assert found is not None
    assert found.change == "micro_batch: 5"
    assert refuse(ParallelSpec(pp=4), MODEL, replace(RECIPE, micro_batch=5), 4) is None


@given(spec=SPECS, world=st.integers(1, 16))
def test_the_nearest_layout_works(spec: ParallelSpec, world: int) -> None:
    """Whatever was asked for, what is offered uses all ranks and is not refused; copies always work."""
    other = nearest(spec, MODEL, RECIPE, Site(world=world))
    assert other is not None
    assert other.world == world
    assert refuse(other, MODEL, RECIPE, world) is None


@given(spec=SPECS)
def test_a_layout_that_works_is_its_own_nearest(spec: ParallelSpec) -> None:
    """Nothing else is offered for what is not refused."""
    if refuse(spec, MODEL, RECIPE, spec.world) is None:
        assert nearest(spec, MODEL, RECIPE, Site(world=spec.world)) == spec


def job(**more: object) -> JobFile:
    document = {"version": 1, "name": "demo", "data": {"uri": "/data"}, **more}
    return check(JobFile, document, what="the job", where=lambda _: "job.yaml")


def layout(written: JobFile, world: int) -> ParallelSpec | None:
    return layout_of(written, recipe_spec(written), Site(world=world))


def test_copies_fill_up_the_ranks() -> None:
    """`parallel: {dp_shard: 2}` on eight ranks is four copies of two shards."""
    assert layout(job(parallel={"dp_shard": 2}), 8) == ParallelSpec(dp_replicate=4, dp_shard=2)


def test_without_parallel_every_rank_has_the_whole_model() -> None:
    """As before there were layouts; also where it is written out."""
    assert layout(job(), 4) is None
    assert layout(job(parallel={"dp_replicate": 4}), 4) is None


def test_interleaved_means_two_stages_per_rank() -> None:
    """Either of the two words is enough."""
    one = job(parallel={"pp": 2, "schedule": "interleaved"}).parallel
    other = job(parallel={"pp": 2, "virtual_stages": 2}).parallel
    assert one is not None
    assert other is not None
    assert (
        spec_of(one, 2) == spec_of(other, 2) == ParallelSpec(pp=2, schedule="interleaved", virtual_stages=2)
    )


def test_a_refusal_reads_as_one_line_with_a_way_out() -> None:
    """Three ranks for heads of four: the reason, and a layout to paste."""
    with pytest.raises(ConfigError) as caught:
        layout(job(parallel={"tp": 3}), 3)
    assert "tp 3 does not divide" in caught.value.message
    assert "parallel: {" in (caught.value.hint or "")


def test_context_parallel_is_refused_with_what_comes_nearest() -> None:
    """torch has none for CPUs: tensor parallel with a split sequence is named."""
    with pytest.raises(ConfigError, match="context parallel"):
        layout(job(parallel={"cp": 2}), 2)


def test_auto_is_a_word() -> None:
    """`parallel: auto` is read, and does not go with sizes."""
    section = job(parallel="auto").parallel
    assert section is not None
    assert section.auto
    with pytest.raises(ConfigError, match="auto"):
        job(parallel={"auto": True, "tp": 2})


def test_a_layout_is_written_as_a_person_would() -> None:
    """Only what differs from the default is named, in YAML."""
    spec = ParallelSpec(dp_shard=2, tp=2, sequence_parallel=False)
    assert text_of(spec) == "parallel: {dp_shard: 2, tp: 2, sequence_parallel: false}"
