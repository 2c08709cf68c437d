"""`hosts check` for people: every host in a row at any width, each finding once, nothing cut."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from llmctl.controller.execute.check import Checked
from llmctl.controller.plan.verdicts import Level, Verdict
from llmctl.controller.ui.columns import GAP, fitting
from llmctl.controller.ui.console import Screen
from llmctl.controller.ui.hostcheck import Board, progress, results_table, verdict_word, warning_lines
from llmctl.controller.ui.hostclean import clean_lines
from llmctl.controller.ui.hostfacts import fact_lines
from llmctl.errors import HostUnreachableError
from llmctl.wire.records import CleanedItem, CleanReport
from tests.unit.controller.builders import facts

DEAD = HostUnreachableError("no answer", host="dead", stage="connect")


def checked(name: str, *levels: Level, message: str = "m", **changes: Any) -> Checked:
    found = tuple(
        Verdict(host=name, message=f"{message}{number}", hint="do this", level=level, **changes)
        for number, level in enumerate(levels)
    )
    return Checked(facts=facts(name), verdicts=found)


def shown(picture: Any, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(picture)
    return out.getvalue()


def test_the_word_of_a_host_is_its_worst_finding() -> None:
    """ok, counted warnings, unfit, drained, no contact, and asking while it has not answered."""
    assert verdict_word(checked("a")) == "ok"
    assert verdict_word(checked("a", Level.WARN)) == "1 warning"
    assert verdict_word(checked("a", Level.WARN, Level.WARN)) == "2 warnings"
    assert verdict_word(checked("a", Level.WARN, Level.UNFIT)) == "unfit"
    assert verdict_word(checked("a", Level.UNFIT, about="drained")) == "drained"
    assert verdict_word(DEAD) == "no contact"
    assert verdict_word(None) == "asking"


@settings(deadline=None)
@given(width=st.integers(min_value=25, max_value=200))
def test_host_and_verdict_are_whole_at_any_width(width: int) -> None:
    """A narrow terminal loses facts, never the name or the verdict, and no line is wider than it is."""
    text = shown(results_table({"gpu-node-17": checked("gpu-node-17"), "dead": DEAD}, width), width)
    assert "gpu-node-17" in text
    assert "no contact" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width


@given(
    widths=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 30), min_size=1),
    width=st.integers(1, 120),
)
def test_columns_go_in_their_order_and_only_as_needed(widths: dict[str, int], width: int) -> None:
    """What is left fits, or nothing more may go; and one column more would not have fitted."""
    first_to_go = [name for name in "fedc" if name in widths]
    left = fitting(widths, width, first_to_go)
    gone = [name for name in first_to_go if name not in left]
    assert gone == first_to_go[: len(gone)]
    fits = sum(widths[name] + GAP for name in left) - GAP <= width
    assert fits or gone == first_to_go
    if gone:
        before = [name for name in widths if name in left or name == gone[-1]]
        assert sum(widths[name] + GAP for name in before) - GAP > width


def test_a_finding_of_many_hosts_is_one_line() -> None:
    """A hundred hosts with one fault are one fault with a hundred hosts."""
    results = {f"n{i}": checked(f"n{i}", Level.WARN, message="low ulimit ") for i in range(100)}
    lines = [line.plain for line in warning_lines(results)]
    assert lines == ["! n0, n1, n2, n3 and 96 more: low ulimit 0", "    do this"]


def test_notes_stand_below_the_warnings() -> None:
    """A reboot is worth a line, whatever the verdict."""
    result = Checked(facts=facts("b"), notes=("was rebooted",))
    assert [line.plain for line in warning_lines({"b": result})] == ["! b was rebooted"]


def test_progress_names_who_is_waited_for() -> None:
    """With a hundred hosts the eye wants the few that are late."""
    text = progress({"a": checked("a"), "b": None, "c": DEAD}).plain
    assert text == "2 of 3 answered · 1 unfit · waiting for b"


def test_a_hosts_own_words_do_no_harm() -> None:
    """Control sequences in what a host says never reach the terminal."""
    evil = Checked(
        facts=facts("a", system="\x1b[2JEvil"),
        verdicts=(Verdict(host="a", message="\x1b]0;x\x07bad", hint="\x1b[1mx", level=Level.WARN),),
    )
    told = shown(results_table({"a": evil}, 200), 200) + "".join(t.plain for t in warning_lines({"a": evil}))
    assert "\x1b]" not in told
    assert "\x1b[2J" not in told
    assert "Evil" in told


def test_unknown_facts_leave_no_empty_line() -> None:
    """A host that told little is shown in few lines."""
    lines = fact_lines(facts("a"))
    assert lines[0] == "a"
    assert all(line.split(None, 1)[1:] for line in lines[1:])


def test_what_clean_freed_is_one_line_and_a_dry_run_lists() -> None:
    """Bytes and counts by kind; runs that were left alone are named."""
    items = (CleanedItem("code", "c" * 64, 3_000_000, 9e5), CleanedItem("run", "t-1", 1_000_000, 9e5))
    report = CleanReport(items=items, live=("demo-1",))
    (line,) = clean_lines("a", report, dry_run=False)
    assert line == "a  4.0 MB freed · 1 code tree, 1 run · left alone, live: demo-1"
    assert len(clean_lines("a", report, dry_run=True)) == 3
    assert clean_lines("a", CleanReport(), dry_run=False) == ["a  nothing to remove"]


def test_the_live_table_fills_while_hosts_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal each answer changes the picture; without one nothing is drawn."""
    with Board(Screen(color="always"), ["a", "b"]) as board:
        board.answered("a", checked("a", Level.UNFIT))
        drawn = capsys.readouterr().err
    assert "0 of 2 answered · waiting for a, b" in drawn
    assert "1 of 2 answered · 1 unfit · waiting for b" in drawn
    capsys.readouterr()
    with Board(Screen(color="never"), ["a"]) as board:
        board.answered("a", checked("a"))
    assert capsys.readouterr().err == ""


def test_more_hosts_than_lines_leave_room_for_the_bad_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """A hundred hosts on 24 lines: those that are fine make way."""
    names = [f"n{i}" for i in range(100)]
    with Board(Screen(color="always"), names) as board:
        for name in names[:-1]:
            board.answered(name, checked(name))
        capsys.readouterr()
        board.answered("n99", checked("n99", Level.UNFIT))
        last = capsys.readouterr().err
    assert "n99" in last
    assert "100 of 100 answered · 1 unfit" in last
    assert last.count("\n") < 2 * 30
