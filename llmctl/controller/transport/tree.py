"""A folder as a value: every file that is pushed, with its hash, and one hash over all of it.

Equal content gives an equal hash on every machine: neither times nor owners count, only paths, bytes,
exec bits and link targets. Empty folders are not part of a tree.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self, TypeAlias

from llmctl.controller.transport.ignore import rules_above
from llmctl.controller.transport.treecache import IGNORED, Folder, TreeCache
from llmctl.controller.transport.treewalk import Walk
from llmctl.errors import ConfigError

Line: TypeAlias = bytes
"""One line of a manifest: `kind sha256 path`, a path's own bytes."""


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
        manifest: a line `kind sha256 path` per entry, NUL between them, sorted by path; `hash` is its sha256.
        folders: relative path with a slash at its end ("" for the root) -> what is directly in it.
        bytes: of all files.
        ignored: how many paths the ignore rules left out (a folder counts once), and those of them that
            lie at the top.
        special: sockets, pipes and devices, which are never pushed.
        large: files over 100 MB with their sizes.
    """

    root: Path
    folders: Mapping[str, Folder]
    manifest: bytes
    hash: str
    files: int
    bytes: int
    ignored: int = 0
    ignored_top: tuple[str, ...] = ()
    special: int = 0
    large: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, root: Path, folders: Mapping[str, Folder]) -> Self:
        """The tree that these folders make."""
        manifest = b"\0".join(_runs(folders))
        top = folders[""].records
        return cls(
            root=root,
            folders=folders,
            manifest=manifest,
            hash=hashlib.sha256(manifest).hexdigest(),
            files=sum(folder.files for folder in folders.values()),
            bytes=sum(folder.bytes for folder in folders.values()),
            ignored=sum(folder.ignored for folder in folders.values()),
            ignored_top=tuple(sorted(name for name in top if top[name] == IGNORED)),
            special=sum(folder.special for folder in folders.values()),
            large=tuple(sorted(found for folder in folders.values() for found in folder.large)),
        )

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All of them, sorted by path; made anew at each call."""
        return tuple(map(self.entry, self.manifest.split(b"\0"))) if self.manifest else ()

    def entry(self, line: Line) -> Entry:
        """The entry of one line of the manifest."""
        kind, digest, path = os.fsdecode(line).split(" ", 2)
        name = path.rfind("/") + 1
        record = self.folders[path[:name]].records[path[name:]]
        return Entry(path, kind, 0 if kind == "l" else record[2], digest, record[7])


def _runs(folders: Mapping[str, Folder]) -> list[bytes]:
    """The manifest's parts. A folder's files and folders are sorted, so its parts are, too."""
    found: list[bytes] = []
    waiting = [*reversed(folders[""].pieces)]
    while waiting:
        piece = waiting.pop()
        if isinstance(piece, bytes):
            found.append(piece)
        else:
            waiting += reversed(folders[piece].pieces)
    return found


def scan(path: Path, *, cache_dir: Path) -> Tree:
    """The tree below `path` as it is now. Files whose stat data is as before are not read again.

    Raises:
        ConfigError: no such folder, an unreadable file, or a link that leads out of the tree.
    """
    root = path.absolute()
    if not root.is_dir():
        raise ConfigError(f"{path} is not a folder", stage="push")
    cache = TreeCache.load(cache_dir, root)
    try:
        found = Walk(root=root, cache=cache).all(rules_above(root))
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}", stage="push") from None
    cache.save(found)
    return Tree.of(root, found)
