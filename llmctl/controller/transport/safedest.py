"""Files below a local folder whose names a host chose: hosts are not trusted with our file system."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from llmctl.errors import IntegrityError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class SafeFile:
    """One file to be filled: beside its name until `keep`, or at its end where it grows (offset > 0).

    Args:
        root: the folder that nothing may leave; it exists.
        path: relative POSIX path below it.

    Raises:
        IntegrityError: the path is absolute, has `..`, or goes through a link.
    """

    def __init__(self, root: Path, path: str, *, offset: int = 0) -> None:
        parts = checked_parts(path)
        self._name = parts[-1]
        self._beside = None if offset else f".{self._name[:100]}.{secrets.token_hex(4)}"
        self._folder = _open_folder(root, parts[:-1], path)
        try:
            self.fd = self._open(offset, path)
        except BaseException:
            os.close(self._folder)
            raise

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def keep(self) -> None:
        """The content is whole: give it its name."""
        if self._beside:
            os.rename(self._beside, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._beside = None

    def close(self) -> None:
        """Without `keep`, a file that was written beside is gone."""
        os.close(self.fd)
        if self._beside:
            os.unlink(self._beside, dir_fd=self._folder)
        os.close(self._folder)

    def _open(self, offset: int, path: str) -> int:
        common = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        if self._beside:
            return os.open(self._beside, common | os.O_EXCL, 0o600, dir_fd=self._folder)
        try:
            handle = os.open(self._name, common, 0o600, dir_fd=self._folder)
        except OSError as error:
            raise _refused(path, error) from None
        if os.fstat(handle).st_size < offset:
            os.close(handle)
            raise IntegrityError(f"{path}: has fewer bytes than were pulled before", stage="pull")
        os.ftruncate(handle, offset)
        os.lseek(handle, offset, os.SEEK_SET)
        return handle


@contextlib.contextmanager
def safe_file(root: Path, path: str, *, offset: int = 0) -> Iterator[SafeFile]:
    """`SafeFile`, closed at the end."""
    file = SafeFile(root, path, offset=offset)
    try:
        yield file
    finally:
        file.close()


def checked_parts(path: str) -> list[str]:
    """The parts of a relative path that stays where it is."""
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise IntegrityError(f"the host named a path outside of its folder: {path!r}", stage="pull")
    return parts


def _open_folder(root: Path, parts: list[str], path: str) -> int:
    """The folder's handle, reached without ever following a link."""
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=handle)
            deeper = os.open(part, _FOLDER, dir_fd=handle)
        except OSError as error:
            raise _refused(path, error) from None
        finally:
            os.close(handle)
        handle = deeper
    return handle


def _refused(path: str, error: OSError) -> IntegrityError:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return IntegrityError(f"{path!r} goes through a link or a file: refused", stage="pull")
    return IntegrityError(f"{path!r}: {error.strerror}", stage="pull")
