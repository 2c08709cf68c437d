"""Text that a job wrote, made harmless for the operator's terminal. Pure."""

from __future__ import annotations

import re

_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, erasing
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC and its like: titles, clipboard, links
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f]"  # what is left of C0 and C1, without the tab
)


def plain(text: str) -> str:
    """One line without terminal sequences and control characters; tabs stay."""
    return _CONTROL.sub("", text)
