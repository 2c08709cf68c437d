"""The arithmetic of the lease. Pure; the model in the tests runs just this.

A host is told an end on its own monotonic clock. Whatever the network does to the message, and however late
it arrives, that end lies no later than the supervisor assumes; so no clocks need to agree.
"""

from __future__ import annotations

from dataclasses import dataclass

FENCE_MARGIN_S = 5.0
"""For an agent to notice that its lease is over, and to kill its ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostClock:
    """A reply came here at `came` (our clock), and said `mono` (the host's, of boot `boot_id`)."""

    came: float
    mono: float
    boot_id: str


def end_there(clock: HostClock, asked: float, lease_s: float) -> float:
    """The end to tell the host in a message sent at `asked`. The host's clock showed at least `mono` when
    the reply came, so it will show this end at our time `asked + lease_s` at the latest."""
    return clock.mono + (asked - clock.came) + lease_s


def end_here(asked: float, lease_s: float) -> float:
    """When, on our clock, ranks that such a message may have renewed have certainly ended."""
    return asked + lease_s + FENCE_MARGIN_S
