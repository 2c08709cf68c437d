"""The worker's half of the fence: no checkpoint is committed when the run may go on elsewhere already.

The agent ends the ranks then; but an agent can be stopped or slow, and what it guards is the checkpoint.
"""

from __future__ import annotations

import time
from pathlib import Path

from llmctl.errors import IntegrityError, TransferError
from llmctl.wire.codec import loads
from llmctl.wire.layout import RunLayout
from llmctl.wire.specs import NodeSpec
from llmctl.wire.supervision import Supervision, lease_left

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

MARGIN_S = 3.0
"""What must be left of the lease: a commit takes a moment."""


class CommitFence:
    """Asked before each commit. Without `contact_s` in the spec it lets everything pass."""

    def __init__(self, run_dir: str, spec: NodeSpec) -> None:
        self._path = Path(RunLayout(run_dir).supervisor)
        self._attempt = spec.attempt
        self._contact_s = spec.contact_s
        self._since = time.monotonic()

    def check(self) -> None:
        """Raises TransferError where the lease is over: nothing is written."""
        if self._contact_s is None:
            return
        left = lease_left(
            self._held(),
            attempt=self._attempt,
            boot_id=_boot_id(),
            since=self._since,
            contact_s=self._contact_s,
            now=time.monotonic(),
        )
        if left < MARGIN_S:
            raise TransferError(
                f"not committed: the supervisor has not been heard for {self._contact_s:g} s,"
                " and the run may go on elsewhere",
                stage="checkpoint",
            )

    def _held(self) -> Supervision | None:
        try:
            return loads(Supervision, self._path.read_bytes())
        except (OSError, IntegrityError):
            return None


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
