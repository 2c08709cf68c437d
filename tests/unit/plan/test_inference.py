"""Where an inference run's replicas go, and what each host is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmctl.controller.plan.inference import place, summary
from llmctl.wire.serving import InferSpec, RankPlace, ReplicaPlan


def places(*slots: int, world: int, wanted: int | None = None) -> list[list[tuple[int, int]]]:
    found = place(slots, world, wanted)
    return [[(rank.node, rank.slot) for rank in replica.ranks] for replica in found]


def test_a_replica_that_fits_a_host_stays_there() -> None:
    """Hosts in turn, so that few replicas are spread; what is left of several hosts is put together last."""
    assert places(2, 2, world=1, wanted=2) == [[(0, 0)], [(1, 0)]]
    assert places(3, 3, world=2) == [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(0, 2), (1, 2)]]
    assert places(1, 1, world=2) == [[(0, 0), (1, 0)]]


def test_more_than_fits_is_none() -> None:
    """Asked for one too many: nothing, not fewer in silence."""
    assert places(2, 2, world=2, wanted=3) == []
    assert places(1, world=2) == []


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 9))
def test_no_slot_is_used_twice_and_none_is_invented(slots: list[int], world: int) -> None:
    """Every replica has all its ranks, each on a slot that its host has; as many replicas as can be."""
    found = place(slots, world)
    used = [rank for replica in found for rank in replica.ranks]
    assert len(set(used)) == len(used)
    assert all(0 <= rank.slot < slots[rank.node] for rank in used)
    assert [len(replica.ranks) for replica in found] == [world] * len(found)
    assert len(found) == sum(slots) // world


def test_the_summary_names_model_layout_and_limits() -> None:
    """One line for the head of a run."""
    replica = ReplicaPlan(index=0, ranks=(RankPlace(node=0, slot=0), RankPlace(node=1, slot=0)))
    spec = InferSpec(model="/m/x", name="x", replicas=(replica,), tp=2)
    assert summary(spec) == "x · 1 replica x tp 2 · bf16 · 16 at once, 2048 tokens each"
    assert replica.nodes == (0, 1)
