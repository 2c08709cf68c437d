"""What follows an attempt of a run: another one on these hosts, waiting, or the end. Pure.

Values in, decision out: the supervisor (`controller/supervise`) looks and acts, and decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum

from llmctl.controller.config.models import JobFile
from llmctl.wire.exitcodes import ExitCode
from llmctl.wire.states import RunState

LOOP = 3
"""So many attempts in a row that fail at one step in one way are a crash loop."""

LONGEST_BACKOFF_S = 300.0
RECIPE_RESTARTS = 3

EXCLUDE = "exclude"
REBALANCE = "rebalance"
"""Values of `watch.slow`, besides `warn`."""


class HostSight(Enum):
    """What is known of one host of a run between two attempts."""

    FREE = "free"
    """It answers, and nothing of an earlier attempt runs there."""

    BUSY = "busy"
    """It may still run the last attempt: it was not proven to have ended, nor is its lease over."""

    GONE = "gone"
    """It does not answer, and its ranks have ended for certain: its lease is over."""


class EndedBy(StrEnum):
    """How an attempt ended; the values are the `state` of an AttemptNote."""

    SUCCESS = "succeeded"
    FAILURE = "failed"
    LOSS = "lost"
    REGROWTH = "regrown"
    STOP = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`restarts` of a job, with what it leaves out, and its `watch.slow`."""

    restarts: int
    no_retry_codes: frozenset[int]
    no_retry_texts: tuple[str, ...]
    backoff_s: float
    hosts: tuple[str, ...]
    min_nodes: int
    wait_for_hosts_s: float
    lease_s: float
    slow: str = "warn"

    @property
    def elastic(self) -> bool:
        """It may go on without some of its hosts."""
        return self.min_nodes < len(self.hosts)

    @property
    def supervised(self) -> bool:
        """There is something to decide at all."""
        return self.restarts > 0 or self.elastic


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """How one attempt ended.

    Attributes:
        codes: exit codes of its failed ranks, and of its nodes.
        words: last lines of the failing rank's log.
        step: the last one that was heard of; checkpoint: the last committed one; None: there was none.
    """

    attempt: int
    by: EndedBy
    reason: str = ""
    codes: frozenset[int] = frozenset()
    words: str = ""
    step: int | None = None
    checkpoint: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Form the next attempt of these hosts, in rank order, after so many seconds."""

    hosts: tuple[str, ...]
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing can be done yet."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """There will be no further attempt."""

    state: RunState
    why: str


def policy_of(job: JobFile, hosts: Sequence[str]) -> Policy:
    """What the job says about restarts on these hosts."""
    given = job.restarts
    restarts = given.max
    if restarts is None:
        asked = job.train.script is None or given.min_nodes is not None
        restarts = RECIPE_RESTARTS if asked else 0
    return Policy(
        restarts=restarts,
        no_retry_codes=frozenset(x for x in given.no_retry_on if isinstance(x, int)) | {ExitCode.NO_RETRY},
        no_retry_texts=tuple(x for x in given.no_retry_on if isinstance(x, str)),
        backoff_s=given.backoff_s,
        hosts=tuple(hosts),
        min_nodes=min(given.min_nodes or len(hosts), len(hosts)),
        wait_for_hosts_s=given.wait_for_hosts_s,
        lease_s=given.lease_s,
        slow=job.watch.slow,
    )


def decide(
    policy: Policy,
    ended: Sequence[AttemptEnd],
    sights: Mapping[str, HostSight],
    waited_s: float,
    unwanted: Collection[str] = (),
) -> Start | Wait | End:
    """What follows the last attempt of `ended`.

    Args:
        ended: every attempt so far, oldest first; at least one.
        sights: of every host of the policy.
        waited_s: seconds since the last attempt ended.
        unwanted: hosts to be left out, as long as `min_nodes` others are there.
    """
    last = ended[-1]
    if last.by is EndedBy.SUCCESS:
        return End(state=RunState.SUCCEEDED, why=last.reason)
    if last.by is EndedBy.STOP:
        return End(state=RunState.CANCELLED, why=last.reason)
    final = _final(policy, ended)
    if final:
        return End(state=RunState.FAILED, why=final)
    return _form(policy, ended, sights, waited_s, unwanted)


def _form(
    policy: Policy,
    ended: Sequence[AttemptEnd],
    sights: Mapping[str, HostSight],
    waited_s: float,
    unwanted: Collection[str],
) -> Start | Wait | End:
    free = tuple(name for name in policy.hosts if sights.get(name) is HostSight.FREE)
    busy = [name for name in policy.hosts if sights.get(name, HostSight.BUSY) is HostSight.BUSY]
    gone = [name for name in policy.hosts if name not in free and name not in busy]
    if len(free) == len(policy.hosts) or (len(free) >= policy.min_nodes and not busy):
        wanted = tuple(name for name in free if name not in unwanted)
        hosts = wanted if len(wanted) >= policy.min_nodes else free
        return Start(hosts=hosts, after_s=max(0.0, backoff_s(policy, ended) - waited_s))
    missing = ", ".join((*busy, *gone))
    if waited_s >= policy.wait_for_hosts_s:
        return End(
            state=RunState.FAILED,
            why=f"waited {policy.wait_for_hosts_s:g} s for {missing}; {ended[-1].reason}",
        )
    if busy and len(free) >= policy.min_nodes:
        return Wait(why=f"until {', '.join(busy)} has ended its part for certain")
    return Wait(why=f"for {missing}: {len(free)} of {policy.min_nodes} hosts are there")


def backoff_s(policy: Policy, ended: Sequence[AttemptEnd]) -> float:
    """Pause before the next attempt, seconds: none after the first failure, nor after a lost host; then
    doubled with each failure in a row that reached no new checkpoint."""
    if ended[-1].by is not EndedBy.FAILURE:
        return 0.0
    row = 1
    for earlier, later in zip(reversed(ended[:-1]), reversed(ended), strict=False):
        if earlier.by is not EndedBy.FAILURE or earlier.checkpoint != later.checkpoint:
            break
        row += 1
    if row == 1:
        return 0.0
    return float(min(LONGEST_BACKOFF_S, policy.backoff_s * 2 ** (row - 2)))


def _final(policy: Policy, ended: Sequence[AttemptEnd]) -> str:
    """Why the failure may not be followed by another attempt; "": it may."""
    last = ended[-1]
    if last.by is EndedBy.REGROWTH:
        return ""
    if last.by is EndedBy.FAILURE:
        codes = sorted(last.codes & policy.no_retry_codes)
        if codes:
            return f"{last.reason} (exit {codes[0]} is not tried again)"
        text = next((text for text in policy.no_retry_texts if text in last.words), None)
        if text is not None:
            return f"{last.reason} (`{text}` is not tried again)"
    loop = _crash_loop(ended)
    if loop:
        return loop
    used = sum(one.by in (EndedBy.FAILURE, EndedBy.LOSS) for one in ended)
    if used > policy.restarts:
        again = f", after {policy.restarts} restarts" if policy.restarts else ""
        return f"{last.reason}{again}"
    return ""


def _crash_loop(ended: Sequence[AttemptEnd]) -> str:
    tail = ended[-LOOP:]
    same = {(one.by, one.reason, one.step, one.checkpoint) for one in tail}
    if len(tail) < LOOP or len(same) > 1 or tail[0].by is not EndedBy.FAILURE:
        return ""
    where = "before the first step" if tail[0].step is None else f"after step {tail[0].step}"
    return f"crash loop: attempts {tail[0].attempt}-{tail[-1].attempt} all failed {where}: {tail[-1].reason}"
