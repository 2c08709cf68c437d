"""Who holds the others up, and which host is slow, from what all hosts say."""

from __future__ import annotations

import dataclasses

from llmctl.controller.collect.pace import hang_verdict, stragglers
from llmctl.controller.collect.view import merge
from llmctl.wire.progress import RESTART, Hang, Progress, RankStack
from llmctl.wire.records import NodeExit, NodeStatus
from llmctl.wire.states import NodeState, RunState
from tests.unit.controller.test_view import NOW, node


def hang(*ranks: tuple[int, str, bool]) -> Hang:
    stacks = tuple(RankStack(rank=rank, where=where, waits=waits) for rank, where, waits in ranks)
    return Hang(at=NOW, idle_s=61.0, bound_s=60.0, policy=RESTART, ranks=stacks)


def status(name: str, *, state: NodeState = NodeState.RUNNING, **changes: object) -> NodeStatus:
    found = node(name, state).status
    assert found is not None
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def test_the_rank_that_is_in_no_collective_holds_the_others_up() -> None:
    """One host alone sees only that its ranks wait; both together name the rank and its line."""
    both = {"a": status("a", hang=hang((0, "step.py:1 in f", True)))}
    both["b"] = status("b", hang=hang((1, "load.py:7 in read", False)))
    assert hang_verdict(both) == (
        "hang: no step for 61 s; rank 1 (b) at load.py:7 in read holds the others up"
    )


def test_without_a_culprit_what_is_known_is_said() -> None:
    """Different collectives, the same one, nobody waiting, and a host without stacks are four things."""
    here = hang((0, "a.py:1 in f", True))
    assert "every rank waits in a collective at a.py:1 in f" in hang_verdict({"a": status("a", hang=here)})
    other = {"a": status("a", hang=here), "b": status("b", hang=hang((1, "a.py:9 in g", True)))}
    assert "different collectives: rank 0 (a) at a.py:1 in f, rank 1 (b) at a.py:9" in hang_verdict(other)
    assert "no rank waits" in hang_verdict({"a": status("a", hang=hang((0, "x", False)))})
    assert "(b took no stacks)" in hang_verdict({"a": status("a", hang=here), "b": status("b")})
    assert hang_verdict({"a": status("a")}) == ""


def test_a_hang_is_the_first_failure_whatever_its_ranks_ended_by() -> None:
    """The verdict of all hosts is the reason; that ranks were ended for it is not shown as the cause."""
    ended = NodeExit(state=NodeState.FAILED, code=1, reason="hang: no step for 61 s", ended_at=NOW + 9)
    seen = hang((0, "a.py:1 in f", False))
    answers = {}
    for name in "ab":
        answer = node(name, NodeState.FAILED)
        answers[name] = dataclasses.replace(
            answer, status=status(name, state=NodeState.FAILED, hang=seen, exit=ended)
        )
    found = merge("demo-7f3a", answers, NOW)
    assert found.state is RunState.FAILED
    assert found.failures[0].rank is None
    assert found.note == found.failures[0].reason == found.hang


def pace(rank: int, own_s: float | None, *, steps: int = 50, data_s: float = 0.0) -> tuple[Progress, ...]:
    return (Progress(rank=rank, t=NOW, step=steps, steps=steps, step_s=0.5, own_s=own_s, data_s=data_s),)


def test_a_slow_host_is_named_with_its_numbers() -> None:
    """Own time decides, not the step's time, which is the same everywhere."""
    found = stragglers({"a": status("a", progress=pace(0, 0.2)), "b": status("b", progress=pace(1, 0.42))})
    assert found == (
        "b is slow: 0.42 s of its own per step (rank 1); the other hosts' median is 0.20 s, "
        "over the last 20 steps",
    )


def test_noise_a_short_run_and_a_lonely_host_name_nobody() -> None:
    """A few milliseconds, a few steps, or no other host to compare with are no evidence."""
    fast = status("a", progress=pace(0, 0.010))
    assert stragglers({"a": fast, "b": status("b", progress=pace(1, 0.025))}) == ()
    assert stragglers({"a": fast, "b": status("b", progress=pace(1, 0.9, steps=9))}) == ()
    assert stragglers({"a": fast, "b": status("b", progress=pace(1, None))}) == ()
    assert stragglers({"b": status("b", progress=pace(1, 0.9))}) == ()
