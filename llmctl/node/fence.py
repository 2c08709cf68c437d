"""The agent's half of the fence: where a run may go on elsewhere, ranks whose supervisor is silent end."""

from __future__ import annotations

import time
from typing import Optional

from llmctl.node import procs, rundir
from llmctl.wire.layout import RunLayout
from llmctl.wire.specs import NodeSpec
from llmctl.wire.supervision import Supervision, lease_left

_LOOK_EVERY_S = 0.5


class Fence:
    """Whether the lease of this attempt's ranks is over. Without `contact_s` it never is."""

    def __init__(self, run: RunLayout, spec: NodeSpec) -> None:
        self._run = run
        self._attempt = spec.attempt
        self._contact_s = spec.contact_s
        self._since = time.monotonic()
        self._boot_id = procs.boot_id()
        self._due = 0.0
        self._heard: Optional[Supervision] = None
        self.reason = f"fenced: no word of the supervisor for {spec.contact_s or 0:g} s"

    def lapsed(self) -> bool:
        """True from then on that nobody has been heard for too long; looks twice a second."""
        now = time.monotonic()
        if self._contact_s is None or now < self._due:
            return False
        self._due = now + _LOOK_EVERY_S
        # On a full disk the file is written over in place, and may be half-written: the last word counts.
        self._heard = rundir.read_supervision(self._run) or self._heard
        left = lease_left(
            self._heard,
            attempt=self._attempt,
            boot_id=self._boot_id,
            since=self._since,
            contact_s=self._contact_s,
            now=now,
        )
        return left <= 0
