"""What the ledger remembers of a run: where it is, and what was last seen of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from llmctl.wire.states import RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecord:
    """Everything needed to reach a host of a run again when no inventory is at hand; no secrets."""

    name: str
    addr: str
    user: Optional[str] = None
    port: Optional[int] = None
    identity_file: Optional[str] = None
    proxy_jump: Optional[str] = None
    workdir: str = "~/.llmctl"
    python: str = "python3"
    slots: Optional[int] = None
    internal_addr: Optional[str] = None
    interface: Optional[str] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run, as last seen from this machine.

    Attributes:
        created_at, updated_at: Unix time on this machine.
        hosts: the hosts of the last attempt, in rank order.
        loss: nats per token, of the last step seen; tokens_per_s: of the whole job.
        exit_code: what llmctl ended with for this run (wire/exitcodes.py), None while it goes on.
        reason: one line: why it ended, or what is odd about it.
        job: the job as written; secrets are names in it.
        view: the last RunView (collect/view.py) as plain values, so that an ended run needs no host.
        owed_stop: hosts that could not be told of a stop; they are at the next contact.
        owed_epoch: of the run's supervisor as it was known then; a newer one makes that stop void.
    """

    run_id: str
    name: str
    created_at: float
    hosts: tuple[HostRecord, ...] = ()
    inventory_path: Optional[str] = None
    state: RunState = RunState.STARTING
    attempt: int = 1
    step: Optional[int] = None
    total: Optional[int] = None
    loss: Optional[float] = None
    tokens_per_s: Optional[float] = None
    exit_code: Optional[int] = None
    reason: str = ""
    updated_at: float = 0.0
    job: dict[str, Any] = field(default_factory=dict)
    view: dict[str, Any] = field(default_factory=dict)
    owed_stop: tuple[str, ...] = ()
    owed_epoch: int = 0

    @property
    def settled(self) -> bool:
        """Every node has ended: the hosts have nothing new to say, and nothing to be told."""
        return self.exit_code is not None and not self.owed_stop
