"""Single lines: verdicts, code, losses, stages, consoles with a poor encoding."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llmctl.controller.collect.view import NodeView, RunView
from llmctl.controller.execute.prepare import Prepared
from llmctl.controller.transport.tree import scan
from llmctl.controller.ui.hostcheck import results_table
from llmctl.controller.ui.live import refreshed
from llmctl.controller.ui.losses import read_steps
from llmctl.controller.ui.plain import plain
from llmctl.controller.ui.runs import verdict_lines
from llmctl.controller.ui.stages import Stage
from llmctl.controller.ui.summaries import code_line
from llmctl.errors import HostUnreachableError, LlmctlError, NotFoundError
from llmctl.wire.states import NodeState, RunState


@given(st.text())
def test_plain_text_has_no_control_character_but_tabs(text: str) -> None:
    """Whatever a job prints, no C0 or C1 character but the tab is left."""
    assert all(c == "\t" or not (c < " " or "\x7f" <= c <= "\x9f") for c in plain(text))


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_ordinary_text_stays(text: str) -> None:
    """Text without control characters is not touched."""
    assert plain(text) == text


def node(host: str, state: NodeState | None, error: str | None = None) -> NodeView:
    return NodeView(host=host, node_rank=0, nproc=1, state=state, error=error)


def test_a_stopped_run_names_what_may_go_on() -> None:
    """After a stop, a node that runs and one nobody could ask are told, with the command that ends them."""
    never = NodeView(host="d", node_rank=0, nproc=1, state=None, error="was never started", missing=True)
    nodes = (
        node("a", NodeState.RUNNING),
        node("b", None, "timed out"),
        node("c", NodeState.CANCELLED),
        never,
    )
    view = RunView(
        run_id="d-1", name="d", state=RunState.CANCELLED, attempt=1, created_at=0.0, age_s=1.0, nodes=nodes
    )
    assert verdict_lines(view)[1:] == [
        "a still running: llmctl stop d-1",
        "b unknown (timed out): llmctl stop d-1",
    ]


def test_a_dry_run_says_what_it_would_send(tmp_path: Path) -> None:
    """Nothing pushed is still a line with the tree's files, size and hash."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "a.py").write_bytes(b"x" * 12_000)
    tree = scan(code, cache_dir=tmp_path / "cache")
    line = code_line(Prepared(ready={}, tree=tree))
    assert line == f"1 file, 12 kB · tree {tree.hash[:6]} · not sent"


def test_a_long_error_stays_out_of_the_hosts_table() -> None:
    """The table points below, where the error stands whole."""
    out = io.StringIO()
    Console(file=out, width=80).print(results_table({"a": HostUnreachableError("x" * 300, host="a")}, 80))
    assert "see below" in out.getvalue()
    assert "xxx" not in out.getvalue()


def test_losses_pass_over_what_is_no_step(tmp_path: Path) -> None:
    """Lines of a script's own in metrics.jsonl, or half a line, don't end the reading."""
    folder = tmp_path / "a" / "attempt-1"
    folder.mkdir(parents=True)
    lines = [json.dumps({"kind": "step", "step": 1}), "[1]", "{half", "7", json.dumps({"kind": "step"})]
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert [line["step"] for line in read_steps(tmp_path)] == [1]


def test_bytes_of_many_threads_are_all_counted() -> None:
    """Hosts are pushed to at once: no thread's bytes are lost, and the sums are shown one after the other."""
    sums: list[str] = []
    showing = threading.Lock()
    overlaps: list[str] = []

    def show(text: str) -> None:
        if not showing.acquire(blocking=False):
            overlaps.append(text)
            return
        threading.Event().wait(0.005)  # long enough for another thread to come in, were it let in
        sums.append(text)
        showing.release()

    stage = Stage(show)
    threads = [threading.Thread(target=stage.add_bytes, args=("", 100)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert sums[-1] == "2.0 kB"


def test_a_refresh_that_fails_keeps_the_last_answer() -> None:
    """A lost connection ends no watch; a run that is gone does."""
    lost = HostUnreachableError("timed out", host="a")
    answers: list[str | LlmctlError] = ["one", lost, "two", NotFoundError("gone")]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, LlmctlError):
            raise answer
        return answer

    told = refreshed(ask, 0.0)
    assert [next(told) for _ in range(3)] == [("one", None), ("one", lost), ("two", None)]
    with pytest.raises(NotFoundError):
        next(told)


def in_ascii(*argv: str) -> bytes:
    done = subprocess.run(
        [sys.executable, *argv],
        env={"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_a_poor_encoding_is_no_error() -> None:
    """Under an ASCII locale the help, with its dots and ellipses, is shown with `?` for what can't be."""
    assert b"llmctl init ? llmctl demo" in in_ascii("-m", "llmctl", "--help")


def test_a_document_loses_nothing_to_a_poor_encoding() -> None:
    """JSON escapes what the encoding lacks, so that the reader gets the same text."""
    code = "from llmctl.controller.ui.console import Screen; Screen().document('x', {'a': '…'})"
    assert json.loads(in_ascii("-c", code))["a"] == "…"
