"""The node agent as one file: a zipapp of this package's own sources, named by its hash.

Same sources, same bytes: a host that has the file under its hash needs no second push.
"""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

_FOLDERS = ("node", "storage", "wire", "worker")
"""storage and worker ride along: unpacked on the host, the archive is the workers' PYTHONPATH."""

_FILES = ("__init__.py", "errors.py")

_WHOLE = (*_FOLDERS, "controller")

_MAIN = '''\
"""Entry of the archive. Where `start` has unpacked it beside itself, compiled files are used from there."""
import os
import sys

sys.dont_write_bytecode = True  # a full disk would leave half a file, see node/tree.py

unpacked = os.path.abspath(sys.path[0])[: -len(".pyz")]
if os.path.isdir(unpacked):
    sys.path.insert(0, unpacked)
from llmctl.node.main import main

sys.exit(main(sys.argv[1:]))
'''

_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentArchive:
    """`data` is the zipapp, `hash` its SHA-256 in hex: it belongs at `HostLayout.agent(hash)`."""

    hash: str
    data: bytes


@functools.cache
def build() -> AgentArchive:
    """The archive of the installed package; stored, not deflated, so that a host needs no zlib."""
    return _packed(_FILES, _FOLDERS)


@functools.cache
def build_whole() -> AgentArchive:
    """All of this package, the controller too: what a supervisor on a host runs."""
    return _packed((*_FILES, "__main__.py"), _WHOLE)


def _packed(files: tuple[str, ...], folders: tuple[str, ...]) -> AgentArchive:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, text in sorted(_entries(files, folders)):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text)
    data = buffer.getvalue()
    return AgentArchive(hash=hashlib.sha256(data).hexdigest(), data=data)


def _entries(files: tuple[str, ...], folders: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """(name in the archive, content)."""
    package = resources.files("llmctl")
    yield "__main__.py", _MAIN.encode()
    for name in files:
        yield f"llmctl/{name}", (package / name).read_bytes()
    for folder in folders:
        yield from _sources(package / folder, f"llmctl/{folder}")


def _sources(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        name = f"{prefix}/{entry.name}"
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _sources(entry, name)
        elif entry.name.endswith((".py", ".cpp")):  # the engine compiles its kernels on the host
            yield name, entry.read_bytes()
