"""The drill of `llmctl store check`: does a store do what training relies on? Tried on it, not believed.

Everything happens in a folder of its own below the URI, which goes at the end, however that comes. Each step
is a function of the `Ground` that returns what was found; it raises BrokenError where the store does not keep
what llmctl needs, and the errors of any other user of the store where it refuses.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from llmctl.errors import LlmctlError
from llmctl.storage.drills import contents, many, racing, speed
from llmctl.storage.drills.ground import Ground
from llmctl.storage.files import open_store
from llmctl.storage.uris import join

SECONDS = 30.0
SIZE = 64 << 20

_CALL_S = 20.0
"""Deadline of one call: a person waits."""

_REMOVE_S = 5.0

Step = Callable[[Ground], str]

STEPS: dict[str, Step] = {
    "write": contents.write_and_read,
    "see": contents.see_at_once,
    "names": contents.names,
    "parts": contents.read_in_parts,
    "replace": racing.replace_under_a_reader,
    "create": racing.two_writers,
    "rename": racing.rename,
    "list": many.listing,
    "clean up": many.cleanup,
    "latency": speed.latency,
    "throughput": speed.throughput,
    "clock": speed.clock,
    "room": speed.room,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one step found.

    Attributes:
        name: of the step.
        text: for people.
        error: why the store failed it; None: it passed.
    """

    name: str
    text: str
    seconds: float
    error: LlmctlError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of it.

    Attributes:
        numbers: what was measured, with the unit in the name (`up_bytes_per_s`).
    """

    uri: str
    atomic_rename: bool
    findings: tuple[Finding, ...]
    numbers: dict[str, float]

    @property
    def fit(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.error)


def drill(
    uri: str,
    *,
    seconds: float = SECONDS,
    size: int = SIZE,
    begins: Callable[[str], object] = str,
    found: Callable[[Finding], object] = repr,
) -> Report:
    """Try all STEPS on the store at `uri`, in about `seconds`.

    Args:
        size: most bytes for the throughput.
        begins, found: called before and after each step.

    Raises:
        ConfigError, NotFoundError, TransferError, DeadlineError: not even a first write works.
    """
    name = f"llmctl-check-{secrets.token_hex(4)}"
    above = open_store(uri, deadline_s=_CALL_S)
    store = open_store(join(uri, name), deadline_s=_CALL_S)
    ground = Ground(store=store, seconds=seconds, size=size)
    findings: list[Finding] = []
    try:
        for step, function in STEPS.items():
            begins(step)
            finding = _try(step, function, ground)
            if not findings:
                _must_pass(finding)
            findings.append(finding)
            found(finding)
    except BaseException:
        # Also after Ctrl-C. What ended the drill is told, not what its removal may trip over.
        with suppress(LlmctlError):
            open_store(uri, deadline_s=_REMOVE_S).delete(name)
        raise
    above.delete(name)
    begins("remove")
    findings.append(_try("remove", contents.nothing_left, ground))
    found(findings[-1])
    return Report(
        uri=above.uri,
        atomic_rename=store.atomic_rename,
        findings=tuple(findings),
        numbers=dict(ground.numbers),
    )


def _try(name: str, function: Step, ground: Ground) -> Finding:
    began = time.monotonic()
    error: LlmctlError | None = None
    try:
        text = function(ground)
    except LlmctlError as caught:
        text, error = caught.message, caught
    return Finding(name=name, text=text, seconds=time.monotonic() - began, error=error)


def _must_pass(first: Finding) -> None:
    """A store that takes no write at all is told by its refusal, not by a list of failed steps."""
    if first.error:
        raise first.error
