"""The planner's promises, over many models, fleets and settings: hypothesis looks for a broken one."""

from __future__ import annotations

import re
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.controller.plan.choose import PASSES_PER_STAGE, choose, way_out
from llmctl.controller.plan.cost import Group, groups
from llmctl.controller.plan.layouts import Question, Row, every_layout, judge, judge_all
from llmctl.controller.plan.machines import Fleet, Given, fake_fleet
from llmctl.controller.plan.memory import estimate_memory
from llmctl.controller.plan.refusals import refusal
from llmctl.wire.model import ModelConfig, count_parameters, model_config
from llmctl.wire.parallel import ParallelSpec
from llmctl.wire.recipe import ModelSpec, RecipeSpec

CHECKPOINTING = st.sampled_from(["none", "selective", "full"])
RECIPES = st.builds(
    RecipeSpec,
    global_batch=st.sampled_from([4, 16, 24, 64]),
    micro_batch=st.sampled_from([1, 2, 4]),
    sequence_length=st.sampled_from([128, 1024]),
    precision=st.sampled_from(["bf16", "fp32"]),
    activation_checkpointing=CHECKPOINTING,
)
MODELS = st.builds(
    model_config, st.builds(ModelSpec, size=st.sampled_from(["tiny", "125m", "1b", "7b"])), st.just(32_000)
)
FLEETS = st.builds(
    fake_fleet,
    st.sampled_from(
        ["1x1xL4-24GB", "1x8xH100-80GB", "2x4xL4-24GB", "1x2xL4-24GB+1x4xL4-24GB", "4x1xcpu-4c-16GB"]
    ),
    st.builds(Given, between=st.sampled_from([None, 1e8, 1e11])),
)
QUESTIONS = st.builds(Question, model=MODELS, recipe=RECIPES, fleet=FLEETS, shared_checkpoints=st.booleans())
few = settings(max_examples=40, deadline=None)


def _with_memory(fleet: Fleet, factor: float) -> Fleet:
    machines = tuple(
        replace(m, device=replace(m.device, memory=int(m.device.memory * factor))) for m in fleet.machines
    )
    return replace(fleet, machines=machines)


@few
@given(QUESTIONS)
def test_what_is_chosen_fits_and_is_never_refused(question: Question) -> None:
    """The chosen layout has room on every rank and breaks no rule, with the settings it is chosen with."""
    row = choose(judge_all(question)).row
    if row is None:
        return
    assert row.memory is not None
    assert row.memory.total <= min(machine.device.memory for machine in question.fleet.machines)
    recipe = replace(question.recipe, micro_batch=row.micro_batch, activation_checkpointing=row.checkpointing)
    assert refusal(row.spec, question.model, recipe, question.site) is None


@few
@given(QUESTIONS)
def test_the_same_question_has_the_same_answer(question: Question) -> None:
    """No clock and no chance: rows come in one order, and every layout of the ranks is one of them."""
    rows = judge_all(question)
    assert rows == judge_all(question)
    assert choose(rows) == choose(rows)
    assert {row.spec for row in rows} == set(every_layout(question.fleet.world))


@few
@given(QUESTIONS, st.sampled_from([1.5, 4.0]))
def test_more_memory_never_makes_a_layout_unfit(question: Question, factor: float) -> None:
    """What fits, fits into more; and where something was chosen, something still is."""
    larger = replace(question, fleet=_with_memory(question.fleet, factor))
    for spec in every_layout(question.fleet.world):
        if judge(question, spec).fits:
            assert judge(larger, spec).fits


@few
@given(MODELS, RECIPES, st.sampled_from([1, 2, 4]), st.booleans())
def test_more_shards_never_need_more_memory(
    model: ModelConfig, recipe: RecipeSpec, shards: int, is_cpu: bool
) -> None:
    """With the micro-batches the same, twice the FSDP ranks hold at most as much each."""
    few_ranks, many = (
        estimate_memory(
            model,
            replace(recipe, global_batch=recipe.micro_batch * count),
            ParallelSpec(dp_shard=count),
            is_cpu=is_cpu,
        )
        for count in (2 * shards, 4 * shards)
    )
    assert many.total <= few_ranks.total


@few
@given(MODELS, RECIPES, st.sampled_from([ParallelSpec(), ParallelSpec(dp_shard=4), ParallelSpec(pp=2)]))
def test_recomputation_keeps_less(model: ModelConfig, recipe: RecipeSpec, spec: ParallelSpec) -> None:
    """full keeps at most what selective keeps, selective at most what none keeps."""
    none, selective, full = (
        estimate_memory(model, replace(recipe, activation_checkpointing=setting), spec, is_cpu=False).total
        for setting in ("none", "selective", "full")
    )
    assert full <= selective <= none


@few
@given(MODELS, st.sampled_from([ParallelSpec(dp_replicate=4), ParallelSpec(dp_shard=4), ParallelSpec(tp=2)]))
def test_state_is_twelve_bytes_per_parameter_over_its_shards(model: ModelConfig, spec: ParallelSpec) -> None:
    """fp32 weights and two moments, cut by dp_shard wholly, by tp except for the small norms."""
    memory = estimate_memory(model, RecipeSpec(), spec, is_cpu=False)
    share = 12 * count_parameters(model) / (spec.dp_shard * spec.tp)
    assert share * 0.999 <= memory.parameters + memory.optimizer <= share * 1.01


def _question(size: str, fleet: str, given_links: Given = Given(), **changes: object) -> Question:  # noqa: B008
    recipe = replace(
        RecipeSpec(model=ModelSpec(size=size), global_batch=64, micro_batch=4, sequence_length=1024),
        **changes,  # type: ignore[arg-type]
    )
    return Question(
        model=model_config(recipe.model, 32_000), recipe=recipe, fleet=fake_fleet(fleet, given_links)
    )


def _chosen(question: Question) -> tuple[Row, str]:
    choice = choose(judge_all(question))
    assert choice.row is not None, choice.why
    return choice.row, choice.why


def test_a_model_that_fits_one_device_is_copied() -> None:
    """The first rule: replicas, whatever the network, and with the job's own settings."""
    row, why = _chosen(_question("125m", "2x4xH100-80GB", Given(between=1e8)))
    assert row.spec.is_replicas
    assert row.as_asked
    assert "fits one device" in why


def test_a_larger_model_is_sharded_where_its_traffic_hides() -> None:
    """The second rule: FSDP over fast links."""
    row, why = _chosen(_question("7b", "1x8xH100-80GB", Given(inside=4e12)))
    assert (row.spec.pp, row.spec.tp) == (1, 1)
    assert row.spec.dp_shard > 1
    assert "hides" in why


def test_over_a_slow_network_shards_do_not_cross_it() -> None:
    """The third rule: where gathering over the network would take most of the step, no FSDP group does."""
    question = _question("7b", "4x4xA100-80GB", Given(between=1e9))
    row, why = _chosen(question)
    assert not groups(question.fleet, row.spec)["dp_shard"].crosses
    assert not groups(question.fleet, row.spec)["tp"].crosses
    assert row.spec.pp == 1 or row.passes >= PASSES_PER_STAGE * row.spec.pp
    assert "does not hide" in why or "hides" in why


def test_what_fits_nowhere_says_how_much_is_missing() -> None:
    """No choice, but the nearest layout by name, and each row says what it lacks."""
    rows = judge_all(_question("7b", "1x2xL4-24GB"))
    choice = choose(rows)
    assert choice.row is None
    assert "nothing fits" in choice.why
    assert all("GB more per rank needed" in row.why for row in rows if row.memory is not None)


def test_unequal_hosts_refuse_tp_groups_that_straddle_them() -> None:
    """With 2 and 3 ranks, tp 5 would go over the network, and 2 does not divide 3: both are told."""
    rows = {row.spec: row for row in judge_all(_question("125m", "1x2xL4-24GB+1x4xL4-24GB", global_batch=96))}
    assert rows[ParallelSpec(dp_replicate=3, tp=2)].fits
    assert "over the network" in rows[ParallelSpec(dp_replicate=2, tp=3)].why


def test_sharded_layouts_without_a_shared_store_are_refused_over_several_hosts() -> None:
    """Each host would have to keep whole checkpoints that it does not hold; the row names the store."""
    question = replace(_question("125m", "2x1xL4-24GB"), shared_checkpoints=False)
    rows = {row.spec: row for row in judge_all(question)}
    assert rows[ParallelSpec(dp_replicate=2)].fits
    assert "checkpoint.uri" in rows[ParallelSpec(dp_shard=2)].why


def test_where_only_a_store_is_missing_it_is_asked_for() -> None:
    """Copies of 7b fit nowhere and shards need a store: the way out names it and the layout it allows; where
    nothing would fit either way, it does not."""
    question = replace(_question("7b", "2x8xA100-80GB"), shared_checkpoints=False)
    assert choose(judge_all(question)).row is None
    assert re.search(r"checkpoint.uri .* then \S.* fits", way_out(question))
    assert "checkpoint.uri" not in way_out(replace(_question("7b", "2x1xL4-24GB"), shared_checkpoints=False))


def test_groups_that_leave_a_host_together_share_its_network() -> None:
    """Four tp-separated rings over two hosts have a quarter of the network each; one ring has all of it."""
    fleet = fake_fleet("2x4xH100-80GB", Given(between=8e9))
    assert groups(fleet, ParallelSpec(dp_replicate=2, tp=4))["dp_replicate"].bandwidth == 2e9
    assert groups(fleet, ParallelSpec(dp_replicate=8))["dp_replicate"].bandwidth == 8e9
    assert groups(fleet, ParallelSpec(dp_replicate=2, tp=4))["tp"].bandwidth == fleet.slowest.inside


def test_a_ring_moves_what_the_formula_says() -> None:
    """All-reduce of S bytes over n ranks: 2 (n - 1) / n S over the bandwidth; all-gather half of it."""
    group = Group(size=4, bandwidth=100.0, latency=0.0, crosses=False)
    assert group.ring(800, 2) == 2 * 3 / 4 * 800 / 100
    assert group.ring(800, 1) == 3 / 4 * 800 / 100
    assert Group(size=1, bandwidth=100.0, latency=1.0, crosses=False).ring(800, 2) == 0
