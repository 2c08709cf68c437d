"""What the last scan knew of each folder: stat data, hashes and ignore decisions.

A file of JSON lines, one folder each, a later line replaces an earlier one: a scan that finds one changed
file appends one line. Losing it costs time, never truth.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

IGNORED = 0

Folder: TypeAlias = dict[str, Any]
"""Name (a folder's with a slash) -> IGNORED, None (a folder) or [mode, size, mtime, ctime, inode, sha256]."""

_VERSION = 1


class TreeCache:
    """The cache of one scanned root; a wrong or torn line is the same as none."""

    def __init__(self, file: Path, folders: dict[str, tuple[str, Folder]], lines: int) -> None:
        self._file = file
        self._before = folders
        self._now: dict[str, tuple[str, Folder]] = {}
        self._changed: list[str] = []
        self._lines = lines

    @classmethod
    def load(cls, cache_dir: Path, root: Path) -> TreeCache:
        name = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
        file = cache_dir / "scans" / f"{name}.jsonl"
        folders: dict[str, tuple[str, Folder]] = {}
        lines = 0
        with contextlib.suppress(FileNotFoundError):
            for line in file.read_bytes().split(b"\n"):
                lines += 1
                with contextlib.suppress(ValueError, TypeError):  # torn by a crash
                    version, prefix, key, folder = json.loads(line)
                    if version == _VERSION:
                        folders[prefix] = (key, folder)
        return cls(file, folders, lines)

    def folder(self, prefix: str, key: str) -> Folder:
        """What was known of a folder under the same ignore rules; under others nothing is."""
        known_key, folder = self._before.get(prefix, ("", {}))
        return folder if known_key == key else {}

    def put(self, prefix: str, key: str, folder: Folder, *, changed: bool) -> None:
        """What is known now."""
        self._now[prefix] = (key, folder)
        if changed:
            self._changed.append(prefix)

    def save(self) -> None:
        """Append what changed, or write all anew when old lines outweigh."""
        anew = self._lines > 2 * len(self._now) + 16 or not self._lines
        if not anew and not self._changed:
            return
        with contextlib.suppress(OSError):  # a cache that can't be written only costs time
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if anew:
                self._replace()
            else:
                self._append()

    def _append(self) -> None:
        with self._file.open("ab") as file:
            file.write(b"\n" + self._encoded(self._changed))

    def _replace(self) -> None:
        handle, beside = tempfile.mkstemp(dir=self._file.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(self._encoded(list(self._now)))
        Path(beside).replace(self._file)

    def _encoded(self, prefixes: list[str]) -> bytes:
        lines = (json.dumps([_VERSION, p, *self._now[p]], separators=(",", ":")) for p in prefixes)
        return "\n".join(lines).encode()
