"""Where a drill takes place: an empty folder of a store, a time for each step, and what was measured."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from llmctl.errors import IntegrityError
from llmctl.storage.files import Store

THREADS = 8


class BrokenError(IntegrityError):
    """The store took the calls but did not keep what they promise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What each step is given.

    Attributes:
        store: nothing but this drill is below it.
        seconds: about what the whole drill may take.
        size: most bytes to move for the throughput.
        numbers: to be filled.
    """

    store: Store
    seconds: float
    size: int
    numbers: dict[str, float] = field(default_factory=dict)

    def until(self, share: float) -> float:
        """The monotonic time at which a step that may take `share` of all has to come to its end."""
        return time.monotonic() + self.seconds * share


def hold(promise: bool, message: str) -> None:
    """Raises: BrokenError: `promise` was not kept."""
    if not promise:
        raise BrokenError(message, stage="storage")
