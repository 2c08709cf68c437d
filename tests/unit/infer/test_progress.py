"""Metric lines of an inference run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmctl.wire import environment
from llmctl.worker.infer import progress


class Clock:
    """`time` as the module sees it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_the_last_line_has_the_speed_of_the_run(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line is the speed since the one before; a last one a moment later is not ten tokens over 10 ms."""
    path = tmp_path / "metrics.jsonl"
    monkeypatch.setenv(environment.METRICS, str(path))
    told = progress.Progress()
    clock.now += 4.0
    told.count(1, 20)
    told.tell(3)
    clock.now += 2.0
    told.count(1, 30)
    told.tell(3)
    clock.now += 0.01
    told.count(1, 10)
    told.tell(3)
    told.tell(3, last=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["tokens_per_s"]) for line in lines] == [(1, 5.0), (2, 15.0), (3, 10.0)]
