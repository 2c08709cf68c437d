"""The status table: ids whole at any width, nothing cut in a pipe, notes where they can be read."""

from __future__ import annotations

import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from llmctl.controller.ledger.records import HostRecord, RunRecord
from llmctl.controller.ui.console import UNLIMITED, Screen
from llmctl.controller.ui.rows import live_rows, rows_table, show_rows
from llmctl.errors import HostUnreachableError
from llmctl.wire.states import RunState

LONG = "a-name-of-forty-characters-as-allowed-xy-7f3a9c"


def row(run_id: str = LONG, reason: str = "") -> RunRecord:
    return RunRecord(
        run_id=run_id,
        name="x",
        created_at=time.time(),
        hosts=(HostRecord(name="a", addr="127.0.0.1"),),
        state=RunState.LOST_CONTACT,
        step=1210,
        total=5000,
        loss=2.981,
        tokens_per_s=41_300.0,
        reason=reason,
    )


def shown(picture: RenderableType, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(picture)
    return out.getvalue()


@given(width=st.integers(min_value=20, max_value=200))
def test_an_id_is_whole_at_any_width(width: int) -> None:
    """However narrow the terminal, no run id is cut: it is what the next command needs."""
    text = shown(rows_table([row("demo-7f3a"), row("b-1")], width), width)
    assert "demo-7f3a" in text
    assert "b-1" in text


@given(width=st.integers(min_value=25, max_value=200))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Columns go before lines break: with short ids every line fits."""
    text = shown(rows_table([row("d-7f3a", reason="b silent for 41 s")], width), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width


def test_a_narrow_terminal_has_the_note_below() -> None:
    """A note without room beside the table is not lost, and names its run."""
    text = shown(rows_table([row("d-7f3a", reason="b is silent")], 60), 60)
    assert "NOTE" not in text
    assert "d-7f3a: b is silent" in text


def test_a_pipe_gets_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """Where stdout is no terminal, nothing is cut or wrapped: one line per run."""
    note = "word " * 60
    screen = Screen()
    assert screen.out.width == UNLIMITED
    show_rows(screen, [row(reason=note)], [])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert LONG in lines[1]
    assert note.strip() in lines[1]
    assert "1210/5000" in lines[1]


def test_a_note_brings_no_escapes() -> None:
    """What a host says goes to the terminal without control sequences."""
    assert "\x1b" not in shown(rows_table([row("d-1", reason="a\x1b[2Jb\x9bc")], 200), 200)


def test_the_live_table_tells_unreachable_hosts() -> None:
    """A host that can't be asked stands below the live table too."""
    error = HostUnreachableError("timed out", host="b", stage="connect")
    assert "b: connect: timed out; its runs are not shown" in shown(live_rows([row()], [error], 200), 200)
