"""What is done about a slow host: shares by speed, hosts left out, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.controller.config.models import JobFile
from llmctl.controller.plan.attempts import AttemptEnd, EndedBy, HostSight, Start, decide, policy_of
from llmctl.controller.plan.plan import recipe_spec
from llmctl.controller.plan.slow import balanced, require_possible, shares_of
from llmctl.errors import ConfigError
from llmctl.wire.parallel import ParallelSpec, share
from llmctl.wire.recipe import RecipeSpec

SPEEDS = st.lists(st.floats(0.01, 100), min_size=1, max_size=9)


def job(**keys: Any) -> JobFile:
    return JobFile.model_validate({"version": 1, "name": "t", "data": {"uri": "/x"}, **keys})


@given(SPEEDS, st.integers(0, 200))
def test_no_move_of_a_sample_would_end_the_step_earlier(speeds: list[float], more: int) -> None:
    """Shares add up, nobody is idle, and giving one sample of the last rank to any other helps nothing."""
    shares = shares_of(len(speeds) + more, speeds)
    assert sum(shares) == len(speeds) + more
    assert min(shares) >= 1
    times = [count / speed for count, speed in zip(shares, speeds, strict=True)]
    last = times.index(max(times))
    if shares[last] > 1:
        others = [(c + 1) / s for i, (c, s) in enumerate(zip(shares, speeds, strict=True)) if i != last]
        assert all(time >= times[last] * (1 - 1e-9) for time in others)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=9))
def test_shares_cut_the_batch_without_gap_or_overlap(shares: list[int]) -> None:
    """Rank after rank, the global batch's samples in their order."""
    world, batch = len(shares), sum(shares)
    taken = [share(batch, rank, world, shares) for rank in range(world)]
    assert [n for first, count in taken for n in range(first, first + count)] == list(range(batch))
    with pytest.raises(ConfigError):
        share(batch + 1, 0, world, shares)


def test_passes_grow_no_larger_and_unknown_hosts_count_as_usual() -> None:
    """Twice as fast takes twice as much; memory per pass stays what was planned."""
    recipe = RecipeSpec(global_batch=9, micro_batch=8)
    uneven = balanced(recipe, {"a": 1, "b": 1, "c": 1}, {"a": 2.0, "b": 1.0})
    assert (uneven.shares, uneven.micro_batch) == ((4, 2, 3), 3)
    assert balanced(recipe, {"a": 1, "b": 1}, {}) == recipe
    sharded = RecipeSpec(global_batch=12, parallel=ParallelSpec(dp_shard=2))
    assert balanced(sharded, {"a": 1, "b": 1}, {"a": 2.0, "b": 1.0}) == sharded


def test_what_can_never_happen_is_refused() -> None:
    """Excluding needs min_nodes, rebalancing a recipe whose ranks wait once per step, and restarts."""

    def refusal(spec: RecipeSpec | None = None, **keys: Any) -> str:
        made = job(**keys)
        with pytest.raises(ConfigError) as found:
            require_possible(made, policy_of(made, "ab"), spec or recipe_spec(made))
        return found.value.message

    balance = {"slow": "rebalance"}
    assert "fewer hosts" in refusal(watch={"slow": "exclude"})
    assert "restarts.max is 0" in refusal(watch=balance, restarts={"max": 0})
    assert "fsdp 2" in refusal(RecipeSpec(parallel=ParallelSpec(dp_shard=2)), watch=balance)
    assert "mean" in refusal(watch=balance, recipe={"aggregation": "mean"})
    script = {"train": {"script": "x.py"}, "restarts": {"max": 1}}
    made = job(watch=balance, **script)
    with pytest.raises(ConfigError, match="a script cuts its own batches"):
        require_possible(made, policy_of(made, "ab"), None)
    fine = job(watch=balance)
    require_possible(fine, policy_of(fine, "ab"), recipe_spec(fine))


def test_a_slow_host_stays_out_only_while_enough_others_are_there() -> None:
    """min_nodes wins over the wish to be quick."""
    made = job(watch={"slow": "exclude"}, restarts={"min_nodes": 2})
    policy, ends = policy_of(made, "abc"), [AttemptEnd(attempt=1, by=EndedBy.LOSS)]
    sights = dict.fromkeys("abc", HostSight.FREE)
    assert decide(policy, ends, sights, 9, unwanted={"b"}) == Start(hosts=("a", "c"))
    assert decide(policy, ends, {**sights, "c": HostSight.GONE}, 9, unwanted={"b"}) == Start(hosts=("a", "b"))
