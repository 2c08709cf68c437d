"""Walk a folder: what is left out, what is as before, what must be read.

A folder in which nothing changed costs one stat per file; all that was made of it before is taken as it is.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from llmctl.controller.transport.ignore import GITIGNORE, LLMCTLIGNORE, Rules
from llmctl.controller.transport.treecache import IGNORED, SUBFOLDER, Folder, Record, Records, TreeCache
from llmctl.errors import ConfigError

_RACY_NS = 2_000_000_000
_CHUNK = 1 << 20

Listing: TypeAlias = dict[str, os.DirEntry[str]]


@dataclass(slots=True, kw_only=True)
class Walk:
    """The state of one walk. `found`: relative path with a slash (or "") -> Folder."""

    root: Path
    cache: TreeCache
    found: dict[str, Folder] = field(default_factory=dict)
    started_ns: int = field(default_factory=time.time_ns)

    def all(self, above: Rules) -> dict[str, Folder]:
        """Every folder, whatever the depth."""
        waiting = [("", above)]
        while waiting:
            waiting += self._folder(*waiting.pop())
        return self.found

    def _folder(self, prefix: str, rules: Rules) -> list[tuple[str, Rules]]:
        """One folder; returns its folders."""
        with os.scandir(f"{self.root}/{prefix}") as listing:
            items = {item.name: item for item in listing}
        items.pop(".git", None)
        rules = rules.below(prefix, _content(items.get(GITIGNORE)), _content(items.get(LLMCTLIGNORE)))
        folder = self.cache.folder(prefix, rules.key)
        if folder is None or not _same(items, folder.records):
            records = self._records(items, prefix, rules, folder.records if folder else {})
            folder = Folder.of(prefix, rules.key, records)
        self.found[prefix] = folder
        return [(piece, rules) for piece in folder.pieces if isinstance(piece, str)]

    def _records(self, items: Listing, prefix: str, rules: Rules, before: Records) -> Records:
        now: Records = {}
        for name, item in items.items():
            is_dir = item.is_dir(follow_symlinks=False)
            key = name + "/" if is_dir else name
            known = before.get(key)
            ignored = known == IGNORED if known is not None else rules.ignores(prefix + name, is_dir=is_dir)
            if ignored:
                now[key] = IGNORED
            elif is_dir:
                now[key] = SUBFOLDER
            else:
                now[key] = self._record(item, prefix + name, known)
        return now

    def _record(self, item: os.DirEntry[str], path: str, known: Record | None) -> Record:
        info = item.stat(follow_symlinks=False)
        if known and _unchanged(known, info):
            return known
        kind, digest, target = "", "", ""
        if stat.S_ISREG(info.st_mode):
            kind, digest = "x" if info.st_mode & 0o100 else "f", _digest(item.path, info.st_size)
        elif stat.S_ISLNK(info.st_mode):
            kind, target = "l", _target(path, item.path)
            digest = hashlib.sha256(os.fsencode(target)).hexdigest()
        # A file that changed in the last two seconds may change again within the clock's tick.
        racy = info.st_mtime_ns > self.started_ns - _RACY_NS
        ctime = -1 if racy else info.st_ctime_ns
        return (ctime, info.st_mtime_ns, info.st_size, info.st_ino, info.st_mode, kind, digest, target)


def _same(items: Listing, records: Records) -> bool:
    """Whether everything is as it was. This runs for every file of every scan."""
    if len(items) != len(records):
        return False
    get = records.get
    for name, item in items.items():
        known = get(name)
        if known:
            info = item.stat(follow_symlinks=False)
            if (
                info.st_ctime_ns != known[0]
                or info.st_mtime_ns != known[1]
                or info.st_size != known[2]
                or info.st_ino != known[3]
                or info.st_mode != known[4]
            ):
                return False
        elif (name + "/" if item.is_dir(follow_symlinks=False) else name) not in records:
            return False
    return True


def _unchanged(known: Record, info: os.stat_result) -> bool:
    seen = (info.st_ctime_ns, info.st_mtime_ns, info.st_size, info.st_ino, info.st_mode)
    return known[:5] == seen


def _content(item: os.DirEntry[str] | None) -> bytes | None:
    """Of an ignore file."""
    return Path(item.path).read_bytes() if item is not None and item.is_file() else None


def _target(path: str, absolute: str) -> str:
    target = os.readlink(absolute)  # noqa: PTH115 - pathlib would normalise the text
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if target.startswith("/") or inside == ".." or inside.startswith("../"):
        message = f"the link {path} -> {target} leads out of the pushed folder"
        raise ConfigError(message, hint=f"list it in {LLMCTLIGNORE}, or copy what it points to", stage="push")
    return target


def _digest(path: str, size: int) -> str:
    """sha256 of the `size` bytes that stat saw; a file that grew meanwhile has other stat data next time."""
    # O_NOFOLLOW: what was a file a moment ago may have become a link.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "changed while it was read", path)
        digest, left = hashlib.sha256(), size
        while left > 0 and (data := os.read(handle, min(left, _CHUNK))):
            digest.update(data)
            left -= len(data)
        return digest.hexdigest()
    finally:
        os.close(handle)
