"""stdin and stdout of the agent's `drill`: break a part of a run on this host, once it has come to a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from llmctl.wire.states import NodeState

KILL_HOST = "kill-host"
"""SIGKILL to the agent, its guard and every process of the run here: what a power cut leaves of a run."""

KILL_RANK = "kill-rank"
"""SIGKILL to ranks: what the kernel does where memory is short."""

FREEZE = "freeze"
"""SIGSTOP to ranks: they live and do nothing, as where a driver hangs."""


@dataclass(frozen=True)
class DrillRequest:
    """What to break.

    Attributes:
        fault: one of the three above.
        attempt: only this one, and only once: asked again, the host tells what it did.
        at_step: not before a rank of this host has finished so many steps.
        wait_s: how long to wait for that; then the answer is an empty `hit`.
        ranks: global ranks that `kill-rank` and `freeze` are for; empty: all of this host.
    """

    fault: str
    attempt: int
    at_step: int
    wait_s: float = 0.0
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class DrillReply:
    """What was broken.

    Attributes:
        state: of the node; where it has ended, nothing can be broken any more.
        attempt: the one that runs, or was hit.
        step: the last one that a rank of this host had finished then.
        hit: the processes that got the signal, for people.
    """

    state: NodeState
    attempt: int
    step: Optional[int] = None
    hit: tuple[str, ...] = ()
