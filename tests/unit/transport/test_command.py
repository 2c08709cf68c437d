"""Commands are quoted once, and statuses are read as a shell gives them."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.controller.transport.command import completed, quoted

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.lists(words, max_size=4))
def test_a_shell_sees_the_same_arguments(argv: list[str]) -> None:
    """Whatever is in an argument, the command receives exactly it."""
    line = quoted(["printf", "%s\\0", "first", *argv])
    out = subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout
    assert out.split(b"\0")[:-1] == [b"first", *(word.encode() for word in argv)]


@pytest.mark.parametrize(
    ("code", "signal"), [(0, None), (3, None), (127, None), (137, "SIGKILL"), (143, "SIGTERM"), (255, None)]
)
def test_signal_names(code: int, signal: str | None) -> None:
    """128+n names signal n; a status that no signal explains names none."""
    assert completed(code).signal == signal
