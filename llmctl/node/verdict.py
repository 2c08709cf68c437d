"""PURE: what a node's end means, from what was seen. The first failure is the cause, the rest follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from llmctl.node.rankfiles import first_failure
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.records import NodeExit, RankExit
from llmctl.wire.states import NodeState


@dataclass(frozen=True)
class Stopped:
    """A stop that was asked for before the launcher had ended; `fenced`: by nobody's being heard;
    `preempted`: by a host that is going down; `checkpoint`: after a last one."""

    at: float
    reason: str
    grace_s: float
    fenced: bool = False
    preempted: bool = False
    checkpoint: bool = False


@dataclass(frozen=True)
class Seen:
    """All that the agent knows at the end.

    Attributes:
        code: of the launcher, 128+n for signal n; None where it was never started.
        signal: the launcher's, where one ended it.
        trouble: why it was not started, or what it said last.
        hung: the ranks were ended because they made no progress any more; what was seen.
        final: the job does not want another attempt after that.
    """

    code: Optional[int]
    signal: Optional[str]
    ranks: tuple[RankExit, ...]
    left: tuple[str, ...]
    stopped: Optional[Stopped]
    trouble: str = ""
    hung: str = ""
    final: bool = False


def of_node(seen: Seen, now: float) -> NodeExit:
    """The verdict that exit.json states."""
    state, reason = _state(seen)
    if seen.hung and state is NodeState.FAILED:
        return NodeExit(
            state=state,
            code=ExitCode.NO_RETRY if seen.final else 1,
            reason=reason,
            ended_at=now,
            ranks=seen.ranks,
            left=seen.left,
        )
    code = (
        seen.code
        if seen.code is not None
        else (0 if state in (NodeState.CANCELLED, NodeState.PREEMPTED) else 1)
    )
    return NodeExit(
        state=state,
        code=code,
        reason=reason,
        ended_at=now,
        ranks=seen.ranks,
        left=seen.left,
        stop_requested_at=seen.stopped.at if seen.stopped else None,
    )


def _state(seen: Seen) -> tuple[NodeState, str]:
    failed = None if seen.hung else first_failure(seen.ranks)
    if seen.stopped and not (failed and failed.ended_at < seen.stopped.at):
        return _state_of_stop(seen.stopped), seen.stopped.reason
    if seen.hung:
        return NodeState.FAILED, seen.hung
    if seen.code == 0:
        return NodeState.SUCCEEDED, f"{len(seen.ranks)} ranks ended with exit 0"
    return NodeState.FAILED, _reason(seen, failed)


def _state_of_stop(stopped: Stopped) -> NodeState:
    if stopped.fenced:
        return NodeState.FAILED
    return NodeState.PREEMPTED if stopped.preempted else NodeState.CANCELLED


def _reason(seen: Seen, failed: RankExit | None) -> str:
    if failed is not None:
        return f"rank {failed.rank}: {failed.signal or f'exit {failed.code}'}"
    if seen.code is None:
        return seen.trouble
    said = f": {seen.trouble}" if seen.trouble else ""
    return f"launcher: {seen.signal or f'exit {seen.code}'}{said}"
