"""What a node's end means, from what was seen."""

from __future__ import annotations

import dataclasses

from llmctl.node import verdict
from llmctl.node.rankfiles import first_failure
from llmctl.wire.records import RankExit
from llmctl.wire.states import NodeState

SEEN = verdict.Seen(code=0, signal=None, ranks=(), left=(), stopped=None)


def rank(number: int, code: int, at: float, signal: str | None = None) -> RankExit:
    return RankExit(
        rank=number, local_rank=number, pid=1, code=code, started_at=0.0, ended_at=at, signal=signal
    )


def judge(**changes: object) -> tuple[NodeState, int, str]:
    ended = verdict.of_node(dataclasses.replace(SEEN, **changes), now=99.0)  # type: ignore[arg-type]
    return ended.state, ended.code, ended.reason


def stop_at(at: float) -> verdict.Stopped:
    return verdict.Stopped(at=at, reason="stop requested", grace_s=1.0)


def test_a_launcher_with_exit_0_has_succeeded() -> None:
    """Nothing but the launcher's exit status makes a success."""
    assert judge(ranks=(rank(0, 0, 5.0),)) == (NodeState.SUCCEEDED, 0, "1 ranks ended with exit 0")


def test_the_first_failing_rank_in_time_is_the_reason() -> None:
    """Rank 5 failed first; rank 0, which lost its connection later, is a consequence."""
    ranks = (rank(0, 1, 7.0), rank(5, 137, 5.0, "SIGKILL"), rank(2, 0, 1.0))
    assert judge(code=1, ranks=ranks) == (NodeState.FAILED, 1, "rank 5: SIGKILL")
    failed = first_failure(ranks)
    assert failed is not None
    assert failed.rank == 5


def test_a_launcher_that_failed_alone_is_the_reason() -> None:
    """With no failed rank the launcher's own end and last words count."""
    assert judge(code=1, trouble="No module named torch")[2] == "launcher: exit 1: No module named torch"
    assert judge(code=139, signal="SIGSEGV")[2] == "launcher: SIGSEGV"


def test_a_stop_before_the_end_is_a_cancel() -> None:
    """Ranks that end badly because of the stop do not make it a failure; when it came is kept."""
    ranks = (rank(0, 143, 5.2, "SIGTERM"),)
    assert judge(code=1, ranks=ranks, stopped=stop_at(5.0)) == (NodeState.CANCELLED, 1, "stop requested")
    ended = verdict.of_node(dataclasses.replace(SEEN, stopped=stop_at(5.0)), now=6.0)
    assert ended.stop_requested_at == 5.0


def test_a_stop_after_a_failure_stays_a_failure() -> None:
    """A gang stop that follows a failed rank does not hide the cause."""
    ranks = (rank(1, 1, 4.0), rank(0, 143, 5.2, "SIGTERM"))
    assert judge(code=1, ranks=ranks, stopped=stop_at(5.0)) == (NodeState.FAILED, 1, "rank 1: exit 1")


def test_what_never_started_says_why() -> None:
    """Code that could not be put in place is the reason; a stop before the launcher is a clean cancel."""
    assert judge(code=None, trouble="code: No space left") == (NodeState.FAILED, 1, "code: No space left")
    assert judge(code=None, stopped=stop_at(1.0)) == (NodeState.CANCELLED, 0, "stop requested")
