"""Argument lists -> the one quoted string that a host's shell sees, and exit statuses -> `Completed`.

Both transports wrap a command in the same `sh`, so that a command that isn't there (127) or was killed
(128+n) looks the same on both. Without the wrapper SSH libraries report a killed command and a lost
connection alike.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence

from llmctl.controller.transport.base import Completed

STDERR_KEPT = 64 << 10
"""Bytes of a stream's stderr that are kept: its end, where the reason stands."""

_WRAPPER = ("/bin/sh", "-c", '"$@"; exit $?', "sh")


def wrapped(argv: Sequence[str]) -> list[str]:
    """The argument list that runs `argv` and always exits with a plain status."""
    return [*_WRAPPER, *argv]


def quoted(argv: Sequence[str]) -> str:
    """`wrapped(argv)` as one command line for the login shell on the other side."""
    return "exec " + shlex.join(wrapped(argv))


def completed(code: int, stdout: bytes = b"", stderr: bytes = b"") -> Completed:
    """`code` as a shell gives it; above 128 it names the signal."""
    return Completed(code=code, stdout=stdout, stderr=stderr, signal=signal_name(code))


def signal_name(code: int) -> str | None:
    """`SIGKILL` for 137; None for a status that no signal explains."""
    try:
        return signal.Signals(code - 128).name if code > 128 else None
    except ValueError:
        return None
