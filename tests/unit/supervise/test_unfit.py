"""Why an attempt could not start: whose fault it is, and whether others can go on without that host."""

from __future__ import annotations

import pytest

from llmctl.controller.supervise.judge import unfit
from llmctl.errors import (
    CancelledRunError,
    ConfigError,
    DeadlineError,
    HostErrors,
    HostUnreachableError,
    LlmctlError,
    PreflightError,
    ProvisionError,
    ReplacedError,
)

FULL = ProvisionError("no space left on device", host="b", stage="launch")
AWAY = HostUnreachableError("no route", host="c")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FULL, {"b": "b: launch: no space left on device"}),
        (HostErrors([FULL, AWAY]), {"b": "b: launch: no space left on device"}),
        (HostErrors([FULL, PreflightError("no torch", host="d")]), {"b": FULL.line(), "d": "d: no torch"}),
        (ReplacedError("another supervisor acts for this run", host="b"), {}),
        (AWAY, {}),
        (DeadlineError("no answer", host="b"), {}),
        (PreflightError("the hosts differ"), {}),
        (HostErrors([FULL, CancelledRunError("stopped", host="a")]), {}),
        (ConfigError("batch 3 on 4 ranks", host="b"), {}),
    ],
)
def test_only_a_host_that_answers_and_can_not_start_is_unfit(
    error: LlmctlError, expected: dict[str, str]
) -> None:
    """One that is away is tried again; what is nobody's fault, or a person's wish, leaves nobody out."""
    assert unfit(error) == expected
