"""The states of a node and of a run, and what tells them apart.

Losing contact is never read as the job's death, and a job's death is never inferred from a silent log:
only the agent's own exit record, or a dead agent seen on its own host, ends a run.
"""

from __future__ import annotations

from enum import Enum


class NodeState(str, Enum):
    """What one host says about its part of a run."""

    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"

    @property
    def ended(self) -> bool:
        return self not in (NodeState.STARTING, NodeState.RUNNING)


class RunState(str, Enum):
    """What the controller concludes from all hosts of a run."""

    STARTING = "starting"
    RUNNING = "running"
    LOST_CONTACT = "lost-contact"
    RESTARTING = "restarting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"

    @property
    def ended(self) -> bool:
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.PREEMPTED)
