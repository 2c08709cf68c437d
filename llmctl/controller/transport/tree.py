"""A folder as a value: every file that is pushed, with its hash, and one hash over all of it.

Equal content gives an equal hash on every machine: neither times nor owners count, only paths, bytes,
exec bits and link targets. Empty folders are not part of a tree.
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
from typing import Any, NamedTuple

from llmctl.controller.transport.ignore import GITIGNORE, LLMCTLIGNORE, Rules, rules_above
from llmctl.controller.transport.treecache import IGNORED, Folder, TreeCache
from llmctl.errors import ConfigError

LARGE = 100 << 20
_RACY_NS = 2_000_000_000


class Entry(NamedTuple):
    """One file or link. A tuple, because a tree may have a hundred thousand.

    `kind` is `f`, `x` (executable file) or `l`; `sha256` of a link is that of its target's text.
    """

    path: str
    kind: str
    size: int
    sha256: str
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """What `scan` found.

    Attributes:
        entries: sorted by path.
        manifest: a line `kind sha256 path` per entry, NUL between them; `hash` is its sha256.
        bytes: of all files.
        ignored: how many paths the ignore rules left out (a folder counts once), and those of them that
            lie at the top.
        special: sockets, pipes and devices, which are never pushed.
        large: files over 100 MB with their sizes.
    """

    root: Path
    entries: tuple[Entry, ...]
    manifest: bytes
    hash: str
    bytes: int
    ignored: int = 0
    ignored_top: tuple[str, ...] = ()
    special: int = 0
    large: tuple[tuple[str, int], ...] = ()

    @property
    def files(self) -> int:
        return len(self.entries)


def scan(path: Path, *, cache_dir: Path) -> Tree:
    """The tree below `path` as it is now. Files whose stat data is as before are not read again.

    Raises:
        ConfigError: no such folder, an unreadable file, or a link that leads out of the tree.
    """
    root = path.absolute()
    if not root.is_dir():
        raise ConfigError(f"{path} is not a folder", stage="push")
    cache = TreeCache.load(cache_dir, root)
    found = _Scan(root=root, cache=cache)
    try:
        found.walk(rules_above(root))
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}", stage="push") from None
    cache.save()
    return found.tree()


@dataclass(slots=True, kw_only=True)
class _Scan:
    """The state of one walk."""

    root: Path
    cache: TreeCache
    entries: list[Entry] = field(default_factory=list)
    ignored: int = 0
    ignored_top: list[str] = field(default_factory=list)
    special: int = 0
    started_ns: int = field(default_factory=time.time_ns)

    def walk(self, above: Rules) -> None:
        """Every folder, whatever the depth."""
        waiting = [("", above)]
        while waiting:
            waiting += self.folder(*waiting.pop())

    def folder(self, prefix: str, rules: Rules) -> list[tuple[str, Rules]]:
        """The files of one folder (`prefix`: its relative path with a slash, or ""); returns its folders."""
        with os.scandir(self.root / prefix) as listing:
            items = [item for item in listing if item.name != ".git"]
        rules = rules.below(prefix, *_ignore_files(items))
        before = self.cache.folder(prefix, rules.key)
        now: Folder = {}
        deeper = []
        for item in items:
            is_dir = item.is_dir(follow_symlinks=False)
            if self._left_out(item.name, prefix, is_dir, rules, before, now):
                continue
            if is_dir:
                now[item.name + "/"] = None
                deeper.append((f"{prefix}{item.name}/", rules))
            else:
                self._leaf(item, prefix, before, now)
        self.cache.put(prefix, rules.key, now, changed=now != before)
        return deeper

    def _left_out(
        self, name: str, prefix: str, is_dir: bool, rules: Rules, before: Folder, now: Folder
    ) -> bool:
        key = name + "/" if is_dir else name
        known = before.get(key, -1)
        ignored = known == IGNORED if known != -1 else rules.ignores(prefix + name, is_dir=is_dir)
        if ignored:
            now[key] = IGNORED
            self.ignored += 1
            if not prefix:
                self.ignored_top.append(key)
        return ignored

    def _leaf(self, item: os.DirEntry[str], prefix: str, before: Folder, now: Folder) -> None:
        info = item.stat(follow_symlinks=False)
        known: list[Any] | None = before.get(item.name)
        if known and len(known) == 6 and _unchanged(known, info):
            now[item.name] = known
            kind = "x" if info.st_mode & 0o100 else "f"
            self.entries.append(Entry(prefix + item.name, kind, info.st_size, known[5]))
        elif stat.S_ISREG(info.st_mode):
            self._file(item, prefix, info, now)
        elif stat.S_ISLNK(info.st_mode):
            self.entries.append(_link(prefix + item.name, item.path))
        else:
            self.special += 1

    def _file(self, item: os.DirEntry[str], prefix: str, info: os.stat_result, now: Folder) -> None:
        """A file whose content must be read."""
        digest = _digest(item.path)
        # A file that changed in the last two seconds may change again within the clock's tick.
        if info.st_mtime_ns <= self.started_ns - _RACY_NS:
            now[item.name] = [*_seen(info), digest]
        kind = "x" if info.st_mode & 0o100 else "f"
        self.entries.append(Entry(prefix + item.name, kind, info.st_size, digest))

    def tree(self) -> Tree:
        entries = sorted(self.entries)
        manifest = os.fsencode("\0".join([f"{e.kind} {e.sha256} {e.path}" for e in entries]))
        return Tree(
            root=self.root,
            entries=tuple(entries),
            manifest=manifest,
            hash=hashlib.sha256(manifest).hexdigest(),
            bytes=sum(entry.size for entry in entries),
            ignored=self.ignored,
            ignored_top=tuple(sorted(self.ignored_top)),
            special=self.special,
            large=tuple((entry.path, entry.size) for entry in entries if entry.size > LARGE),
        )


def _seen(info: os.stat_result) -> list[int]:
    return [info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]


def _unchanged(known: list[Any], info: os.stat_result) -> bool:
    # The likeliest difference first, and no list made: this runs for every file of every scan.
    return bool(
        known[3] == info.st_ctime_ns
        and known[2] == info.st_mtime_ns
        and known[1] == info.st_size
        and known[4] == info.st_ino
        and known[0] == info.st_mode
    )


def _ignore_files(items: list[os.DirEntry[str]]) -> tuple[bytes | None, bytes | None]:
    """Content of a folder's .gitignore and .llmctlignore."""
    content: dict[str, bytes] = {}
    for item in items:
        if item.name in (GITIGNORE, LLMCTLIGNORE) and item.is_file():
            content[item.name] = Path(item.path).read_bytes()
    return content.get(GITIGNORE), content.get(LLMCTLIGNORE)


def _link(path: str, absolute: str) -> Entry:
    target = os.readlink(absolute)  # noqa: PTH115 - pathlib would normalise the text
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if target.startswith("/") or inside == ".." or inside.startswith("../"):
        message = f"the link {path} -> {target} leads out of the pushed folder"
        raise ConfigError(message, hint=f"list it in {LLMCTLIGNORE}, or copy what it points to", stage="push")
    return Entry(path, "l", 0, hashlib.sha256(os.fsencode(target)).hexdigest(), target)


def _digest(path: str) -> str:
    # O_NOFOLLOW: what was a file a moment ago may have become a link.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(handle, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "changed while it was read", path)
        return hashlib.file_digest(file, "sha256").hexdigest()
