"""Which of several hosts failed first, by clocks that differ and answers that take their time."""

from __future__ import annotations

import pytest

from llmctl.controller.supervise.contacts import Sighting
from llmctl.controller.supervise.judge import failed_at
from llmctl.wire.contact import ContactReply
from tests.unit.controller.test_view import failed


def sighting(host: str, *, unix: float, mono: float, ok_at: float, clocks: tuple[float, ...]) -> Sighting:
    """`unix`, `mono`: the host's clocks when its last answer was made; `ok_at`: when that came here."""
    reply = ContactReply(now=unix, mono=mono, boot_id="b", status=failed(host, 0, unix - 1.0).status)
    return Sighting(host=host, ok_at=ok_at, reply=reply, clocks=clocks)


def when(seen: Sighting) -> float:
    assert seen.status is not None
    return failed_at(seen.status, seen)


def test_a_slow_answer_does_not_make_a_failure_later() -> None:
    """b failed 50 ms before a; its last answer was 0.4 s under way, one before it came at once. Its Unix
    clock, an hour ahead, does not matter."""
    a = sighting("a", unix=1_000_000.0, mono=50.05, ok_at=100.06, clocks=(50.01,))
    b = sighting("b", unix=1_003_600.0, mono=7.0, ok_at=100.4, clocks=(93.01, 93.4))
    assert when(a) == pytest.approx(99.06)
    assert when(b) == pytest.approx(99.01)
