"""What all hosts of a run say, as one view of the run. Pure: answers in, view out.

Three different things stay three: `failed` (a host says so), `lost-contact` (a host can't be asked) and
`running`. A host that can't be asked never makes a run failed, and never hides what the others say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from llmctl.controller.collect.pace import hang_verdict, stragglers
from llmctl.errors import LlmctlError
from llmctl.wire import supervision
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.records import NodeExit, NodeStatus, RankExit
from llmctl.wire.specs import NodeSpec, Peer
from llmctl.wire.states import NodeState, RunState
from llmctl.wire.supervision import Supervision


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of asking one host for one run.

    `asked_at` and `answered_at` are on the controller's clock; with the host's `now` they give its clock
    offset. `missing`: the host answered that it has no such run.
    """

    host: str
    asked_at: float
    answered_at: float
    status: NodeStatus | None = None
    error: LlmctlError | None = None
    missing: bool = False

    @property
    def clock_offset(self) -> float:
        """The host's clock minus ours, in seconds; half a round trip uncertain. 0 where it may well be 0:
        clocks are mostly kept together better than a busy host's answer can tell."""
        if self.status is None:
            return 0.0
        offset = self.status.now - (self.asked_at + self.answered_at) / 2
        return 0.0 if abs(offset) <= (self.answered_at - self.asked_at) / 2 else offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The first rank of the run that ended badly, by a clock common to all hosts."""

    host: str
    rank: RankExit | None
    reason: str
    log: tuple[str, ...]
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One host in a run's view; `state` is None where it could not be asked or never started (`missing`)."""

    host: str
    node_rank: int
    nproc: int
    state: NodeState | None
    error: str | None = None
    missing: bool = False
    lease_age_s: float | None = None
    last_event_age_s: float | None = None
    exit: NodeExit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run as `status` shows it. Times are seconds; `step`, `loss` ... are None where nobody knows.

    `took_s` is from the start to the last node's end, on our clock; None while the run goes on.
    `supervision`: what its supervisor last told any host, `supervisor_age_s` seconds ago.
    `hang` names who holds the others up; `stragglers`: a line of evidence per slow host.
    """

    run_id: str
    name: str
    state: RunState
    attempt: int
    created_at: float
    age_s: float
    nodes: tuple[NodeView, ...]
    took_s: float | None = None
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    checkpoint_step: int | None = None
    checkpoint_problem: str | None = None
    note: str = ""
    failures: tuple[Failure, ...] = ()
    supervision: Supervision | None = None
    supervisor_age_s: float | None = None
    hang: str = ""
    stragglers: tuple[str, ...] = ()

    @property
    def answered(self) -> int:
        return sum(node.state is not None for node in self.nodes)

    @property
    def final(self) -> bool:
        """Nothing of it can change any more: its supervisor says so, or every node has ended, or was never
        started."""
        if self.state.ended and self.supervision is not None and self.supervision.phase == supervision.ENDED:
            return True
        return self.state.ended and all(
            node.missing or (node.state is not None and node.state.ended) for node in self.nodes
        )

    @property
    def verdict(self) -> ExitCode:
        """The exit code of a command that waited for this run."""
        return {
            RunState.SUCCEEDED: ExitCode.OK,
            RunState.FAILED: ExitCode.JOB_FAILED,
            RunState.CANCELLED: ExitCode.CANCELLED,
            RunState.PREEMPTED: ExitCode.CANCELLED,
        }.get(self.state, ExitCode.NOT_FINISHED)


def merge(run_id: str, answers: Mapping[str, Answer], now: float) -> RunView:
    """The view of one run; at least one answer carries a status.

    Args:
        answers: by host name, for every host that was asked.
        now: Unix time on the controller's clock.
    """
    spec = max((a.status.spec for a in answers.values() if a.status), key=lambda s: s.attempt)
    current = {
        name: answer
        for name, answer in answers.items()
        if answer.status is None or answer.status.spec.attempt == spec.attempt
    }
    nodes = tuple(_node(peer, current.get(peer.host), older=peer.host in answers) for peer in spec.peers)
    statuses = {name: answer.status for name, answer in current.items() if answer.status}
    hang, slow = hang_verdict(statuses), stragglers(statuses)
    failures = tuple(sorted(_failures(current, hang), key=lambda failure: failure.at))
    told, silent_s = _supervision(answers)
    if told is None and spec.epoch:  # it has not spoken yet
        told = Supervision(epoch=spec.epoch, holder="", attempt=spec.attempt)
        silent_s = max(0.0, now - spec.created_at)
    state = _supervised(_state(nodes, failures, _stopped_at(current)), nodes, told, silent_s)
    return RunView(
        run_id=run_id,
        name=spec.run_name,
        state=state,
        attempt=spec.attempt,
        created_at=spec.created_at,
        age_s=max(0.0, now - spec.created_at),
        nodes=nodes,
        took_s=_took(spec, current) if state.ended else None,
        checkpoint_step=_checkpoint(current),
        checkpoint_problem=_checkpoint_problem(current),
        note=_supervisor_note(state, told, silent_s)
        or _note(nodes, failures if state is RunState.FAILED else (), _checkpoint_problem(current))
        or ("" if state.ended else hang or "; ".join(slow)),
        failures=failures if state in (RunState.FAILED, RunState.RESTARTING) else (),
        supervision=told,
        supervisor_age_s=silent_s,
        hang=hang,
        stragglers=() if state.ended else slow,
        **_progress(spec, _metrics(current), ended=state.ended),
    )


def _supervision(answers: Mapping[str, Answer]) -> tuple[Supervision | None, float | None]:
    """What the supervisor that acts last told any host, and how long ago."""
    told = [
        (found.epoch, found.attempt, -age, found)
        for answer in answers.values()
        if answer.status and (found := answer.status.supervision)
        for age in [max(0.0, answer.status.now - found.heard_at)]
    ]
    if not told:
        return None, None
    *_, age, newest = max(told, key=lambda one: one[:3])
    return newest, -age


def _supervised(
    state: RunState, nodes: tuple[NodeView, ...], told: Supervision | None, silent_s: float | None
) -> RunState:
    """The end of an attempt is not the end of its run where somebody is there to start the next one."""
    if told is None or silent_s is None:
        return state
    if told.phase == supervision.ENDED:
        return RunState(told.verdict)
    if silent_s > supervision.STALE_S:
        return state
    exits = [node.exit for node in nodes if node.exit is not None and node.state is NodeState.CANCELLED]
    by_person = any(not ended.reason.startswith(supervision.REASON) for ended in exits)
    resumed = told.phase != supervision.WATCHING and told.detail.startswith(supervision.CLAIMED)
    goes_on = state is RunState.CANCELLED and (resumed or not by_person)
    if goes_on or state in (RunState.FAILED, RunState.PREEMPTED):
        return RunState.RESTARTING
    if told.phase == supervision.WAITING and state is RunState.LOST_CONTACT:
        return RunState.RESTARTING
    return state


def _supervisor_note(state: RunState, told: Supervision | None, silent_s: float | None) -> str:
    """What the supervisor says, where it says more than the nodes; or that nobody hears it any more."""
    if told is None or silent_s is None or state in (RunState.SUCCEEDED, RunState.CANCELLED):
        return ""
    if told.phase != supervision.ENDED and silent_s > supervision.STALE_S:
        return f"its supervisor on {told.where} has been silent for {silent_s:.0f} s: llmctl resume"
    return told.detail


class _Progress(TypedDict):
    step: int | None
    total: int | None
    loss: float | None
    tokens_per_s: float | None
    eta_s: float | None


def _progress(spec: NodeSpec, metrics: Mapping[str, object], *, ended: bool) -> _Progress:
    total = _int(metrics.get("total")) or spec.total_steps
    return {
        "step": _int(metrics.get("step")),
        "total": total,
        "loss": _float(metrics.get("loss")),
        "tokens_per_s": None if ended else _float(metrics.get("tokens_per_s")),
        "eta_s": None if ended else _eta(metrics, total),
    }


def _node(peer: Peer, answer: Answer | None, *, older: bool) -> NodeView:
    """`older`: the host has answered; where its answer is left out, it was about an earlier attempt."""
    if answer is None or answer.status is None:
        error = "this attempt has not started there" if answer is None and older else _why(answer)
        return NodeView(
            host=peer.host,
            node_rank=peer.node_rank,
            nproc=peer.nproc,
            state=None,
            error=error,
            missing=answer is not None and answer.missing,
        )
    status = answer.status
    event = status.last_event
    return NodeView(
        host=peer.host,
        node_rank=peer.node_rank,
        nproc=peer.nproc,
        state=status.state,
        lease_age_s=max(0.0, status.now - status.lease.t) if status.lease else None,
        last_event_age_s=max(0.0, status.now - event.t) if event else None,
        exit=status.exit,
    )


def _why(answer: Answer | None) -> str:
    if answer is None:
        return "not in this hosts file"
    if answer.missing:
        return "was never started"
    return answer.error.message if answer.error else "gave no answer"


def _state(nodes: tuple[NodeView, ...], failures: tuple[Failure, ...], stopped_at: float | None) -> RunState:
    """What came first decides: a stop makes peers fail, and a failure makes us stop the peers."""
    states = [node.state for node in nodes]
    if stopped_at is not None and not (failures and failures[0].at < stopped_at):
        preempted = any(state is NodeState.PREEMPTED for state in states)
        return RunState.PREEMPTED if preempted else RunState.CANCELLED
    if failures:
        return RunState.FAILED
    if None in states:
        return RunState.LOST_CONTACT
    if all(state is NodeState.SUCCEEDED for state in states):
        return RunState.SUCCEEDED
    if NodeState.STARTING in states:
        return RunState.STARTING
    return RunState.RUNNING


def _took(spec: NodeSpec, answers: Mapping[str, Answer]) -> float | None:
    ends = [a.status.exit.ended_at - a.clock_offset for a in answers.values() if a.status and a.status.exit]
    return max(0.0, max(ends) - spec.created_at) if ends else None


def _stopped_at(answers: Mapping[str, Answer]) -> float | None:
    """When a stop first reached a node that was still going, on our clock."""
    found = []
    for answer in answers.values():
        ended = answer.status.exit if answer.status else None
        if ended and ended.state in (NodeState.CANCELLED, NodeState.PREEMPTED):
            at = ended.ended_at if ended.stop_requested_at is None else ended.stop_requested_at
            found.append(at - answer.clock_offset)
    return min(found, default=None)


def _failures(answers: Mapping[str, Answer], hang: str) -> list[Failure]:
    """`hang`: what all hosts together say of one; the ends of its ranks are only consequences."""
    found = []
    for answer in answers.values():
        status = answer.status
        if status is None or status.state is not NodeState.FAILED:
            continue
        hung = bool(status.hang and status.exit and status.exit.reason.startswith("hang:"))
        rank = None if hung else status.failure
        at = rank.ended_at if rank else (status.exit.ended_at if status.exit else status.now)
        reason = status.exit.reason if status.exit else "failed"
        if hung and status.hang:
            at, reason = status.hang.at, hang
        found.append(
            Failure(
                host=answer.host,
                rank=rank,
                reason=reason,
                log=status.failure_log,
                at=at - answer.clock_offset,
            )
        )
    return found


def _metrics(answers: Mapping[str, Answer]) -> dict[str, object]:
    found = [a.status.metrics for a in answers.values() if a.status and a.status.metrics]
    return max(found, key=lambda metrics: _int(metrics.get("step")) or 0, default={})


def _checkpoint(answers: Mapping[str, Answer]) -> int | None:
    steps = [a.status.checkpoint_step for a in answers.values() if a.status]
    return max((step for step in steps if step is not None), default=None)


def _checkpoint_problem(answers: Mapping[str, Answer]) -> str | None:
    found = [a.status.checkpoint_problem for a in answers.values() if a.status]
    return next((problem for problem in found if problem), None)


def _eta(metrics: Mapping[str, object], total: int | None) -> float | None:
    """Seconds to the last step at the pace of the last one."""
    tokens, speed = _float(metrics.get("tokens")), _float(metrics.get("tokens_per_s"))
    step = _int(metrics.get("step"))
    if not tokens or not speed or step is None or total is None:
        return None
    return max(0, total - step) * tokens / speed


def _note(nodes: tuple[NodeView, ...], failures: tuple[Failure, ...], checkpoint: str | None) -> str:
    if failures:
        first = failures[0]
        return first.reason if first.reason.startswith("hang:") else f"{first.reason} on {first.host}"
    lost = [node for node in nodes if node.state is None]
    if lost:
        more = f" (+{len(lost) - 1} more)" if len(lost) > 1 else ""
        return f"{lost[0].host}: {lost[0].error}{more}"
    return checkpoint or ""


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
