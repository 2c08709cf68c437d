"""A store on a local disk or mounted file system, by the standard library alone."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from llmctl.errors import ConfigError, NotFoundError
from llmctl.storage.faults import STAGE, explained
from llmctl.storage.files import StoreFile, is_temporary, temporary_name
from llmctl.storage.hashing import CHUNK, Digest, check
from llmctl.storage.uris import checked
from llmctl.wire.manifests import FileEntry


class LocalStore:
    """`Store` below one folder, which appears with the first write."""

    atomic_rename = True

    def __init__(self, root: Path) -> None:
        self.uri = str(root)
        self.local_root: Path | None = root
        self._root = root

    def where(self, path: str) -> str:
        return str(self._root / path)

    def exists(self, path: str) -> bool:
        return self._path(path).is_file()

    def info(self, path: str) -> StoreFile:
        with explained("look up", self.where(path)):
            if self._path(path).is_dir():
                raise NotFoundError(f"{self.where(path)}: is a folder, not a file", stage=STAGE)
            return _stat(self._path(path).stat(), path)

    def size(self, path: str) -> int:
        return self.info(path).size

    def list(self, prefix: str = "") -> list[StoreFile]:
        top = self._path(prefix) if prefix else self._root
        with explained("list", str(top)):
            found = list(_list(self._root, top)) if top.is_dir() else []
        return sorted((file for file in found if not is_temporary(file.path)), key=lambda file: file.path)

    def read_bytes(self, path: str) -> bytes:
        with explained("read", self.where(path)):
            return self._path(path).read_bytes()

    def open_read(self, path: str) -> BinaryIO:
        with explained("open", self.where(path)):
            return self._path(path).open("rb")

    def write_bytes(self, path: str, data: bytes) -> None:
        with explained("write", self.where(path)):
            _write_beside(io.BytesIO(data), self._path(path))

    def put_file(self, local: Path, path: str) -> FileEntry:
        with explained("read", str(local)):
            source = local.open("rb")
        with source, explained("write", self.where(path)):
            return _write_beside(source, self._path(path)).entry(path)

    def get_file(self, path: str, local: Path, *, expected: FileEntry | None = None) -> FileEntry:
        with self.open_read(path) as source, explained("write", str(local)), write_beside(local) as target:
            found = _copy(source, target).entry(path)
            if expected is not None:
                check(self.where(path), expected, found)
        return found

    def rename(self, old: str, new: str) -> None:
        target = self._path(new)
        with explained("rename", self.where(old)):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._path(old).replace(target)

    def delete(self, prefix: str) -> None:
        path = self._path(prefix)
        with explained("delete", str(path)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def free_room(self) -> int | None:
        place = self._root
        while not place.exists():
            place = place.parent
        with explained("look up", str(place)):
            return shutil.disk_usage(place).free

    def cleanup(self, older_than_s: float) -> tuple[str, ...]:
        before = time.time() - older_than_s
        with explained("clean up", self.uri):
            found = list(_list(self._root, self._root)) if self._root.is_dir() else []
            stale = [file.path for file in found if is_temporary(file.path) and file.modified <= before]
            for path in stale:
                (self._root / path).unlink(missing_ok=True)
        return tuple(sorted(stale))

    def _path(self, path: str) -> Path:
        return self._root / checked(path)


@contextmanager
def write_beside(target: Path) -> Iterator[BinaryIO]:
    """A stream to a temporary file that takes `target`'s name once the body ends without an error."""
    if target.is_dir():
        raise ConfigError(f"{target} is a folder, a file is to be written there")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(temporary_name(target.name))
    try:
        with beside.open("w+b") as stream:
            yield stream
            stream.flush()
            # Else a power cut could leave the final name on a file whose blocks never reached the disk.
            os.fsync(stream.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _write_beside(source: BinaryIO, target: Path) -> Digest:
    with write_beside(target) as stream:
        return _copy(source, stream)


def _copy(source: BinaryIO, target: BinaryIO) -> Digest:
    digest = Digest()
    while chunk := source.read(CHUNK):
        target.write(chunk)
        digest.update(chunk)
    return digest


def _list(root: Path, top: Path) -> Iterator[StoreFile]:
    """Files below `top`, through links to files but not through links to folders (they may loop). What others
    remove or rename meanwhile is left out."""
    cut = len(str(root).rstrip("/")) + 1
    folders = [str(top)]
    while folders:
        with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file():
                    with suppress(FileNotFoundError):
                        yield _stat(entry.stat(), entry.path[cut:])


def _stat(status: os.stat_result, name: str) -> StoreFile:
    version = str(status.st_mtime_ns)
    return StoreFile(path=name, size=status.st_size, version=version, modified=status.st_mtime)
