"""A small JSON file that several invocations may change: a lock, written beside and renamed, mode 0600."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmctl.wire import codec


class JsonFile:
    """The file at `path` in the operator's state folder, which is made when something is written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, key: str) -> dict[str, Any]:
        """What stands below `key`; nothing where there is no file.

        Raises:
            OSError, ValueError, KeyError, TypeError: it can't be read.
        """
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return dict(document[key])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held for a read and a write: a short wait, whoever has it."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def write(self, key: str, value: dict[str, Any]) -> None:
        """Replace the file. Raises OSError; then it is as it was."""
        text = json.dumps({"schema": codec.SCHEMA, key: value}, indent=1)
        handle, beside = tempfile.mkstemp(prefix=self.path.name + ".", dir=self.path.parent)  # mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(beside).replace(self.path)
        except OSError:
            Path(beside).unlink(missing_ok=True)
            raise
