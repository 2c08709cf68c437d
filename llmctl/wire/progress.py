"""How far each rank has come, and what was seen of ranks that came no further.

A rank writes progress-<rank>.json into its attempt's directory (the recipe by itself, a script through
`llmctl.worker.reporting`); the agent reads it to tell a hang, the controller to compare hosts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

STEPPING = "step"
SAVING = "saving"

RESTART = "restart"
STOP = "stop"

STACK_SIGNAL = 50
"""On which a rank writes its Python stacks: a real-time signal that no launcher or scheduler uses."""


@dataclass(frozen=True)
class Progress:
    """progress-<rank>.json: one rank's last finished step.

    Attributes:
        t: Unix time on the host.
        total: steps of the whole run.
        phase: `saving` while the rank is inside of a checkpoint, which has deadlines of its own.
        steps: finished in this attempt.
        step_s: wall seconds per step, mean of the last ones.
        own_s: the part of it in which the rank worked or waited for its data, not for other ranks.
        data_s: the part of `own_s` in which it waited for its data.
        longest_s: the longest step of this attempt but its first.
    """

    rank: int
    t: float
    step: int
    total: Optional[int] = None
    phase: str = STEPPING
    steps: int = 0
    step_s: Optional[float] = None
    own_s: Optional[float] = None
    data_s: Optional[float] = None
    longest_s: float = 0.0


@dataclass(frozen=True)
class WatchSpec:
    """What an agent does about ranks that hang.

    Attributes:
        hang_s: seconds without progress that are a hang; None: derived from the measured steps; 0: none is.
        policy: `restart`: the attempt ends and may be followed by another; `stop`: the run ends for good.
        straggler: a host whose own work takes this many times the other hosts' median is named in status.
    """

    hang_s: Optional[float] = None
    policy: str = RESTART
    straggler: float = 1.3


@dataclass(frozen=True)
class RankStack:
    """Where one rank was found. `waits`: in a collective, for other ranks. `where`: its innermost line that
    is not a library's, or why there is no stack."""

    rank: int
    where: str
    waits: bool
    step: Optional[int] = None


@dataclass(frozen=True)
class Hang:
    """hang.json: this host's ranks have made no progress for `idle_s` seconds. `at`: host's Unix time."""

    at: float
    idle_s: float
    bound_s: float
    policy: str
    ranks: tuple[RankStack, ...] = ()
