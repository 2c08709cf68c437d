"""What a job writes is anybody's text: a display gets clean values, whole lines, or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from llmctl.controller.collect.pull import Source, wanted_checkpoints
from llmctl.controller.execute.watch import _frame
from llmctl.wire.records import Frame, RunFile
from llmctl.wire.states import NodeState
from tests.unit.controller.builders import host


class Seen:
    """A watcher that keeps what it was told."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, Any]] = []
        self.lines: list[str] = []

    def metric(self, host: str, line: dict[str, Any]) -> None:
        self.metrics.append(line)

    def log(self, host: str, rank: int | None, lines: list[str]) -> None:
        self.lines += lines

    def event(self, *_: object) -> None:
        raise AssertionError("no event was sent")

    lost = back = tick = event


def seen(file: str, text: str) -> Seen:
    watcher = Seen()
    frame = Frame(now=1.0, state=NodeState.RUNNING, file=file, offset=len(text), text=text)
    _frame("a", frame, watcher)  # type: ignore[arg-type]
    return watcher


def test_only_numbers_reach_a_display_as_numbers() -> None:
    """A null or a text under a known key is dropped; the job's own keys pass."""
    text = '{"kind":"checkpoint","step":1,"stalled_s":null}\n{"step":"x","loss":0.5,"mine":"y"}\n'
    assert seen("attempt-1/metrics.jsonl", text).metrics == [
        {"kind": "checkpoint", "step": 1},
        {"loss": 0.5, "mine": "y"},
    ]


@pytest.mark.parametrize("junk", ["", "null", "[1]", "{", "\x00"])
def test_junk_among_metrics_is_passed_over(junk: str) -> None:
    """Scripts append to the file too."""
    assert seen("attempt-1/metrics.jsonl", junk + "\n").metrics == []


def test_lines_end_where_lines_end() -> None:
    """Form feeds and Unicode separators belong to a line; all three usual ends end one."""
    text = "form\x0cfeed \x85nel \u2028ls\r\nnext\rlast\n"
    assert seen("attempt-1/rank-0.log", text).lines == ["form\x0cfeed \x85nel \u2028ls", "next", "last"]


def test_a_host_can_not_name_a_folder_of_ours() -> None:
    """Only `step-` and eight digits become a checkpoint folder: `..` would empty the destination."""
    names = [
        "checkpoints/../COMMIT.json",
        "checkpoints/step-1/COMMIT.json",
        "checkpoints/step-00000002/COMMIT.json",
    ]
    files = tuple(RunFile(path=name, size=1, mtime_ns=1) for name in names)
    source = Source(host=host("a", "x"), root="/r", checkpoint_root="/r/c", python="p", files=files)
    assert list(wanted_checkpoints([source], "all")) == ["step-00000002"]
