"""One attempt, as its hosts' answers show it: does it go on, and if not, how has it ended? Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmctl.controller.collect.pace import hang_verdict
from llmctl.controller.plan.attempts import AttemptEnd, EndedBy, HostSight
from llmctl.controller.supervise.contacts import Sighting
from llmctl.errors import (
    CancelledRunError,
    ConfigError,
    DeadlineError,
    HostErrors,
    HostUnreachableError,
    LlmctlError,
    ReplacedError,
)
from llmctl.wire.records import NodeStatus
from llmctl.wire.states import NodeState
from llmctl.wire.supervision import REASON

LOST_S = 8.0
"""A host that has not answered for so long is asked about at the other hosts."""

PEERS_GRACE_S = 5.0
"""After a failure the others normally end by themselves, with their own last words."""

PATIENT = (HostUnreachableError, DeadlineError)
"""A host did not answer: trying again can help."""

_STOPPED = (NodeState.CANCELLED, NodeState.PREEMPTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The attempt can't go on. `calm`: nothing is wrong with it, its ranks may take their time to end."""

    by: EndedBy
    reason: str
    calm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The attempt that is watched. `began`: on our monotonic clock, when all its starts were over."""

    number: int
    hosts: tuple[str, ...]
    began: float


def statuses(attempt: Attempt, seen: Mapping[str, Sighting]) -> dict[str, NodeStatus]:
    """What each of its hosts last said of this very attempt."""
    found = {}
    for name in attempt.hosts:
        status = seen[name].status
        if status is not None and status.spec.attempt == attempt.number:
            found[name] = status
    return found


def stopped(seen: Mapping[str, Sighting]) -> str:
    """Why a person has stopped the run; "": nobody has."""
    replies = (one.reply for one in seen.values() if one.reply and not one.missing)
    return next((reply.stopped for reply in replies if reply.stopped), "")


def verdict(attempt: Attempt, seen: Mapping[str, Sighting], now: float) -> Broken | None:
    """Whether and how the attempt is over; None: it goes on, as far as anybody can tell."""
    told = statuses(attempt, seen)
    if len(told) == len(attempt.hosts) and all(s.state is NodeState.SUCCEEDED for s in told.values()):
        return Broken(by=EndedBy.SUCCESS, reason="")
    failed = [name for name in attempt.hosts if name in told and told[name].state is NodeState.FAILED]
    if failed:
        first = min(failed, key=lambda name: failed_at(told[name], seen[name]))
        hung = told[first].hang is not None
        reason = (hang_verdict(told) if hung else "") or reason_of(first, told[first])
        return Broken(by=EndedBy.FAILURE, reason=reason)
    wiped = [name for name in attempt.hosts if seen[name].missing and seen[name].asked_at > attempt.began]
    if wiped:
        return Broken(by=EndedBy.LOSS, reason=f"{wiped[0]} knows nothing of the run any more")
    older = [name for name in attempt.hosts if _knows_older(attempt, seen[name])]
    if older:
        return Broken(by=EndedBy.LOSS, reason=f"attempt {attempt.number} was never started on {older[0]}")
    ended = [name for name in attempt.hosts if name in told and told[name].state in _STOPPED]
    if ended:
        return Broken(by=EndedBy.FAILURE, reason=f"{ended[0]} was ended: {_exit_reason(told[ended[0]])}")
    return _lost(attempt, seen, now)


def _knows_older(attempt: Attempt, one: Sighting) -> bool:
    """Asked after all starts were over, it only knows an earlier attempt: the supervisor that was starting
    this one died before it came to this host. Its order can't come later: the host obeys the present one."""
    asked = one.asked_at > attempt.began
    return asked and one.status is not None and one.status.spec.attempt < attempt.number


def _exit_reason(status: NodeStatus) -> str:
    return status.exit.reason if status.exit else "stopped"


def _lost(attempt: Attempt, seen: Mapping[str, Sighting], now: float) -> Broken | None:
    """A host is lost when neither we nor any other host of the run gets an answer from it.

    Where its peers do, only our own way to it is broken, and the job may be fine.
    """
    silent = silent_hosts(attempt, seen, now)
    others = [name for name in attempt.hosts if name not in silent]
    for name in silent:
        verdicts = [reply.silent for other in others if (reply := seen[other].reply) is not None]
        if verdicts and all(name in mute for mute in verdicts):
            return Broken(by=EndedBy.LOSS, reason=f"{name} is lost")
    return None


def silent_hosts(attempt: Attempt, seen: Mapping[str, Sighting], now: float) -> list[str]:
    """Hosts of the attempt that have given us no answer for long."""
    return [name for name in attempt.hosts if seen[name].silent_for(now) > LOST_S]


def replaced(seen: Mapping[str, Sighting]) -> bool:
    """Some host obeys another supervisor."""
    return any(one.replaced for one in seen.values())


def silence_s(seen: Mapping[str, Sighting], now: float) -> float:
    """For how long no host at all has given an answer."""
    return min((one.silent_for(now) for one in seen.values()), default=0.0)


def failed_at(status: NodeStatus, seen: Sighting) -> float:
    """When a node failed, on our monotonic clock."""
    at = status.failure.ended_at if status.failure else (status.exit.ended_at if status.exit else status.now)
    return seen.here(at)


def reason_of(name: str, status: NodeStatus) -> str:
    """`rank 1: SIGKILL on b`."""
    if status.failure is not None and not status.hang:
        how = status.failure.signal or f"exit {status.failure.code}"
        return f"rank {status.failure.rank}: {how} on {name}"
    return f"{status.exit.reason if status.exit else 'failed'} on {name}"


def over(name: str, attempt: Attempt, seen: Mapping[str, Sighting], now: float) -> bool:
    """Nothing of the run goes on on that host any more, for certain: it says so, asked after this attempt was
    started, or its lease is over."""
    one = seen[name]
    status = one.status
    fresh = one.reachable and one.asked_at > attempt.began
    if fresh and (one.missing or (status is not None and status.state.ended and _proven(status))):
        return True
    return one.ranks_until is not None and now > one.ranks_until


def _proven(status: NodeStatus) -> bool:
    return status.exit is not None and not status.agent_alive


def sights(
    names: Sequence[str], attempt: Attempt, seen: Mapping[str, Sighting], now: float
) -> dict[str, HostSight]:
    """What is known of every host of the run, between two attempts."""
    found = {}
    for name in names:
        if not over(name, attempt, seen, now):
            found[name] = HostSight.BUSY
        else:
            free = seen[name].silent_for(now) <= LOST_S and not _taken(seen[name])
            found[name] = HostSight.FREE if free else HostSight.GONE
    return found


def _taken(one: Sighting) -> bool:
    """Another run came while this one had nothing going on there; hosts are not shared silently."""
    return one.reply is not None and bool(one.reply.held_by)


def end_of(attempt: Attempt, broken: Broken, seen: Mapping[str, Sighting]) -> AttemptEnd:
    """The attempt in the terms of `plan/attempts.py`."""
    told = statuses(attempt, seen)
    codes = {s.failure.code for s in told.values() if s.failure} if broken.by is EndedBy.FAILURE else set()
    if broken.by is EndedBy.FAILURE:
        codes |= {s.exit.code for s in told.values() if s.exit and s.state is NodeState.FAILED}
    words = [line for s in told.values() for line in s.failure_log]
    return AttemptEnd(
        attempt=attempt.number,
        by=broken.by,
        reason=broken.reason,
        codes=frozenset(codes),
        words="\n".join(words),
        step=last_step(told.values()),
        checkpoint=checkpoint_of(seen),
    )


def last_step(told: Iterable[NodeStatus]) -> int | None:
    """The last step that any of these nodes names."""
    steps = [(status.metrics or {}).get("step") for status in told]
    return max((step for step in steps if isinstance(step, int)), default=None)


def checkpoint_of(seen: Mapping[str, Sighting]) -> int | None:
    """The last committed checkpoint that any host names."""
    steps = [one.status.checkpoint_step for one in seen.values() if one.status]
    return max((step for step in steps if step is not None), default=None)


def unfit(error: LlmctlError) -> dict[str, str]:
    """Hosts that answer and still could not start an attempt, and why; none where it is more than that."""
    found = {}
    for one in error.errors if isinstance(error, HostErrors) else [error]:
        if isinstance(one, PATIENT):
            continue
        if one.host is None or isinstance(one, (CancelledRunError, ConfigError, ReplacedError)):
            return {}
        found[one.host] = one.line()
    return found


def ours(status: NodeStatus) -> bool:
    """This node was ended by a supervisor, not by a person."""
    return status.exit is not None and status.exit.reason.startswith(REASON)
