"""Console scripts of an environment that is moved: their first line names its interpreter by full path."""

from __future__ import annotations

import os

from llmctl.node import atomic


def readdress(folder: str, final: str) -> None:
    """Let what lies in `folder` and names it work at `final`. Raises OSError."""
    old, new = os.fsencode(folder), os.fsencode(final)
    where = os.path.join(folder, "bin")
    for name in sorted(os.listdir(where)):
        path = os.path.join(where, name)
        if os.path.islink(path) or not os.path.isfile(path):
            continue
        text = atomic.read(path) or b""
        if b"\0" not in text[:512] and old in text:
            _replace(path, text.replace(old, new))


def _replace(path: str, text: bytes) -> None:
    """In place: nobody runs it yet, and its mode stays."""
    with open(path, "r+b") as file:
        file.write(text)
        file.truncate()
