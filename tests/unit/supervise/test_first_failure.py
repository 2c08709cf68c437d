"""Which of several hosts failed first, by clocks that differ and answers that take their time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmctl.controller.supervise.contacts import Sighting
from llmctl.controller.supervise.judge import failed_at
from llmctl.wire.records import NodeStatus
from tests.unit.controller.test_view import failed


def failure(*, host_clock: float, ended_at: float) -> NodeStatus:
    status = failed("a", 0, host_clock + ended_at).status
    assert status is not None
    return replace(status, now=host_clock + ended_at)


def test_a_slow_answer_does_not_make_a_failure_later() -> None:
    """b failed 50 ms before a; its answer was 0.4 s under way, the ones before it came at once."""
    a = failure(host_clock=1_000_000.0, ended_at=100.05)
    b = failure(host_clock=1_003_600.0, ended_at=100.0)
    seen_a = Sighting(host="a", ok_at=100.06, clocks=(-999_999.99,))
    seen_b = Sighting(host="b", ok_at=100.4, clocks=(-1_003_599.99, -1_003_599.6))
    assert failed_at(b, seen_b) == pytest.approx(100.01)
    assert failed_at(a, seen_a) == pytest.approx(100.06)
