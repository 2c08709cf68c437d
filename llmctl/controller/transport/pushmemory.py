"""What the controller remembers of its pushes: which host has which tree. Losing it costs only time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llmctl.controller.transport.tree import Tree
from llmctl.wire.layout import TREE_HASH

_KEPT = 64
"""Manifests kept on this machine; the least recently written go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """The last push to one host: its tree, and what unpacks there. Empty strings: nothing is known."""

    tree: str = ""
    codec: str = ""


class PushMemory:
    """Small files below `cache_dir`, each written beside and renamed: many controllers may share it."""

    def __init__(self, cache_dir: Path) -> None:
        self._hosts = cache_dir / "pushed"
        self._manifests = cache_dir / "manifests"

    def recall(self, host: str, workdir: str) -> Remembered:
        try:
            document = json.loads(self._host_file(host, workdir).read_text())
            known = Remembered(tree=str(document["tree"]), codec=str(document["codec"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Remembered()
        return (
            known
            if TREE_HASH.match(known.tree) and known.codec in ("zstd", "gzip", "python")
            else Remembered()
        )

    def keep(self, tree: Tree) -> None:
        """Have the tree's manifest at hand: without it, a tree that a host has can be no base."""
        with contextlib.suppress(OSError):
            manifest = self._manifests / tree.hash
            if not manifest.exists():
                _write(manifest, tree.manifest)
                self._prune()

    def remember(self, host: str, workdir: str, tree_hash: str, codec: str) -> None:
        """The host has this tree now."""
        with contextlib.suppress(OSError):
            known = Remembered(tree=tree_hash, codec=codec)
            if self.recall(host, workdir) != known:
                text = json.dumps({"tree": tree_hash, "codec": codec})
                _write(self._host_file(host, workdir), text.encode())

    def manifest(self, tree_hash: str) -> bytes:
        """The manifest of a tree, or b"" where it isn't known (or not what its name says)."""
        if not TREE_HASH.match(tree_hash):
            return b""
        try:
            data = (self._manifests / tree_hash).read_bytes()
        except OSError:
            return b""
        return data if hashlib.sha256(data).hexdigest() == tree_hash else b""

    def _host_file(self, host: str, workdir: str) -> Path:
        name = hashlib.sha256(f"{host}\0{workdir}".encode(errors="surrogateescape")).hexdigest()[:32]
        return self._hosts / f"{name}.json"

    def _prune(self) -> None:
        files = sorted(self._manifests.iterdir(), key=lambda file: file.stat().st_mtime)
        for file in files[:-_KEPT]:
            file.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(beside).replace(path)
