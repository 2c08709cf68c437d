"""Small files that are never seen half-written: written beside and renamed, or not there at all."""

from __future__ import annotations

import errno
import os

_MODE = 0o600


def write(path: str, text: str, *, durable: bool = False) -> None:
    """Replace `path` by `text`. `durable`: on the disk before this returns. Raises OSError."""
    beside = _beside(path)
    try:
        _fill(beside, text, durable=durable)
        os.replace(beside, path)
    except OSError:
        remove(beside)
        raise


def overwrite(path: str, text: str) -> None:
    """Write over the file's own blocks: for a full disk, where a new file finds no room.

    A reader may see it half-written, so this is for files that are read again. Raises OSError.
    """
    fd = os.open(path, os.O_WRONLY)
    try:
        _write_all(fd, text.encode())
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """No file of that name afterwards; none before is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def read(path: str) -> bytes | None:
    """The whole file, or None where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


class Reserved:
    """A file whose room on the disk is taken now and whose text comes later.

    A full disk is a common reason for a run to end, and just then its verdict must still be written:
    overwriting blocks that the file already has needs no new ones.
    """

    def __init__(self, path: str, size: int) -> None:
        """Take `size` bytes beside `path`; without room the text is written as usual, later."""
        self._path = path
        self._beside = _beside(path)
        try:
            _fill(self._beside, " " * size, durable=False)
        except OSError:
            remove(self._beside)

    def commit(self, text: str, *, durable: bool = False) -> bool:
        """Make `text` the file's content unless there is one: the first verdict stays. Raises OSError.

        Returns:
            Whether this text is the file now.
        """
        flags = os.O_WRONLY | os.O_CREAT
        fd = os.open(self._beside, flags, _MODE)
        try:
            data = text.encode()
            _write_all(fd, data)
            os.ftruncate(fd, len(data))
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        return _claim(self._beside, self._path)

    def drop(self) -> None:
        """Give the room back."""
        remove(self._beside)


def _claim(beside: str, path: str) -> bool:
    try:
        os.link(beside, path)
    except FileExistsError:
        remove(beside)
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.ENOSPC):
            raise
        # No hard links here (some FUSE file systems), or no room for one more name.
        os.replace(beside, path)
        return True
    remove(beside)
    return True


def _beside(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{os.getpid()}")


def _fill(path: str, text: str, *, durable: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE)
    try:
        _write_all(fd, text.encode())
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
