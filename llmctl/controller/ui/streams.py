"""Our own streams, whatever the locale: a sign that can't be shown is a `?`, never an error. No rich here."""

from __future__ import annotations

import io
import sys


def show_what_can_be_shown() -> None:
    """Let stdout and stderr replace what their encoding hasn't. Once, before anything prints."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
