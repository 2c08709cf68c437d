"""supervisor.json: what the supervisor of a run last told a host, for anyone who asks the hosts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

WATCHING = "watching"
"""An attempt runs."""

PAUSING = "pausing"
"""Between two attempts: the last one is being ended, or the back-off is not over."""

WAITING = "waiting"
"""For hosts that are lost."""

ENDED = "ended"
"""There will be no further attempt."""

REASON = "supervisor: "
"""Reasons of stops that a supervisor asked for begin with it: they end an attempt, not the run."""

CLAIMED = "resumed by hand"
"""How the detail of a supervisor begins that was called by a person and has not started an attempt yet."""

EVERY_S = 2.0
"""How often a supervisor speaks to each host."""

STALE_S = 30.0
"""A supervisor that has been silent for so long may be replaced."""


@dataclass(frozen=True)
class AttemptNote:
    """One attempt, as its supervisor saw it. Times are Unix seconds on the supervisor's clock.

    Attributes:
        state: `running`, `succeeded`, `failed`, `lost` (a host) or `regrown` (ended to take hosts back in).
        step: the last step that was heard of; checkpoint_step: the last committed one.
        reason: why it ended. note: what was done about slow hosts.
    """

    attempt: int
    hosts: tuple[str, ...]
    started_at: float
    state: str = "running"
    ended_at: Optional[float] = None
    step: Optional[int] = None
    checkpoint_step: Optional[int] = None
    reason: str = ""
    note: str = ""


@dataclass(frozen=True)
class Supervision:
    """Who decides about a run, and what it last decided.

    Attributes:
        epoch: of two supervisors the one with the higher number acts; hosts refuse the other.
        holder: names the supervisor's process for certain. where: for people, the machine it runs on.
        phase: one of the four above; `verdict`: a RunState, once it is ENDED.
        attempt: the newest one.
        detail: what is going on, one line.
        heard_at: the host's Unix time when it was told; 0 on the way to the host.
        valid_until: the host's monotonic clock: until then its ranks may go on without hearing more; None:
            they may for ever. boot_id: the boot that this clock is of.
    """

    epoch: int
    holder: str
    where: str = ""
    phase: str = WATCHING
    attempt: int = 1
    detail: str = ""
    verdict: str = ""
    attempts: tuple[AttemptNote, ...] = ()
    heard_at: float = 0.0
    valid_until: Optional[float] = None
    boot_id: str = ""

    def refuses(self, epoch: int, holder: str = "") -> bool:
        """Whether one that comes with `epoch` must not act here any more."""
        return epoch < self.epoch or (epoch == self.epoch and bool(holder) and holder != self.holder)


def lease_left(
    held: Optional[Supervision], *, attempt: int, boot_id: str, since: float, contact_s: float, now: float
) -> float:
    """Seconds for which the ranks of `attempt` may still go on; at most 0: they must end.

    Args:
        held: supervisor.json as it lies there.
        since: when this attempt began here; before the first word, the lease counts from then.
        now: both on this host's monotonic clock, so that nobody who sets the clock can lengthen a lease.
    """
    until = since + contact_s
    if held is not None and held.boot_id == boot_id and held.valid_until is not None:
        if held.attempt > attempt:
            return 0.0
        if held.attempt == attempt:
            until = max(until, held.valid_until)
    return until - now
