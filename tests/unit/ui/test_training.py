"""The live view: what it waits for, unknown totals, launcher lines, and a job's escapes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.training import LAUNCHER_LINES, TrainingView
from llmctl.wire.records import Event, EventKind

FAILED = Event(seq=9, t=1.0, kind=EventKind.ENDED, attempt=1, detail="failed: launcher exited with 1")
RANK_FAILED = Event(seq=8, t=1.0, kind=EventKind.RANK_EXITED, attempt=1, rank=3, code=1)


class Shown:
    """A screen whose stderr is kept: a terminal or not."""

    def __init__(self, *, terminal: bool) -> None:
        self._file = io.StringIO()
        self.screen = Screen()
        self.screen.err = Console(file=self._file, force_terminal=terminal, width=100, highlight=False)

    @property
    def text(self) -> str:
        return self._file.getvalue()


def test_until_the_first_step_it_says_what_it_waits_for() -> None:
    """On a terminal the time between launch and first step is not silent."""
    shown = Shown(terminal=True)
    with TrainingView(shown.screen, total=5, logs=False, hosts=["a", "b"]):
        pass
    assert "starting on a, b …" in shown.text


def test_a_step_replaces_the_waiting_line() -> None:
    """The last picture of a run with steps shows the step and no word of starting."""
    shown = Shown(terminal=True)
    with TrainingView(shown.screen, total=5, logs=False, hosts=["a"]) as view:
        view.metric("a", {"kind": "step", "step": 2, "loss": 1.0})
    last = shown.text.rsplit("\r", 1)[-1]
    assert "2/5" in last
    assert "starting" not in last


def test_an_unknown_total_is_no_total() -> None:
    """Without a total the line has the step alone, never `None`, and the bar does not end full."""
    shown = Shown(terminal=True)
    with TrainingView(shown.screen, total=None, logs=False) as view:
        view.metric("a", {"kind": "step", "step": 7})
    last = shown.text.rsplit("\r", 1)[-1]
    assert "None" not in shown.text
    assert "step" in last
    assert "7" in last
    assert "━" not in last


@pytest.mark.parametrize("rank_failed", [True, False])
def test_launcher_lines_show_when_only_they_can_explain(rank_failed: bool) -> None:
    """A node that failed without a failed rank prints its last launcher lines; else they are noise."""
    shown = Shown(terminal=False)
    with TrainingView(shown.screen, total=5, logs=True) as view:
        if rank_failed:
            view.event("a", RANK_FAILED)
        view.event("a", FAILED)
        view.log("a", None, [f"torchrun line {n}." for n in range(LAUNCHER_LINES + 1)])
    assert ("torchrun line 20." in shown.text) is not rank_failed
    assert "torchrun line 0." not in shown.text


def test_launcher_lines_of_a_good_run_are_hidden() -> None:
    """A run that succeeds shows its ranks' lines only."""
    shown = Shown(terminal=False)
    with TrainingView(shown.screen, total=5, logs=True) as view:
        view.log("a", None, ["noise"])
        view.log("a", 0, ["word"])
    assert "noise" not in shown.text
    assert "a:0 word" in shown.text


@pytest.mark.parametrize("terminal", [True, False])
def test_a_jobs_escapes_stay_off_the_terminal(terminal: bool) -> None:
    """A terminal gets the text of a line without its control sequences; a pipe gets the bytes as they are."""
    shown = Shown(terminal=terminal)
    evil = "a\x1b]0;title\x07b\x1b[2Jc\td"
    with TrainingView(shown.screen, total=5, logs=True) as view:
        view.log("a", 0, [evil])
    assert ("\x1b]0;title" in shown.text) is not terminal
    if terminal:
        assert "abc" in shown.text
