"""stdin and stdout of the agent's `contact`: one beat between a supervisor and a host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from llmctl.wire.records import NodeStatus
from llmctl.wire.supervision import Supervision


@dataclass(frozen=True)
class Probe:
    """A TCP port of another host: does this host get an answer from it, be it a refusal?"""

    host: str
    addr: str
    port: int


@dataclass(frozen=True)
class ContactRequest:
    """What a supervisor tells a host.

    `supervision.valid_until` renews the lease of this host's ranks; None leaves it as it is.
    """

    supervision: Supervision
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True)
class ContactReply:
    """What the host answers.

    Attributes:
        mono: its monotonic clock now; boot_id: the boot which that is of.
        status: its part of the run.
        silent: those of the probed hosts that gave no answer.
        stopped: a person has stopped the run; "" where nobody has.
        held_by: other runs that have taken this host, and share it with none.
    """

    now: float
    mono: float
    boot_id: str
    status: Optional[NodeStatus] = None
    silent: tuple[str, ...] = ()
    stopped: str = ""
    held_by: tuple[str, ...] = ()
