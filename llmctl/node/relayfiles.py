"""The files of one relay: written as they come, read by those who hand them on, renamed when whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import BinaryIO

from llmctl.errors import IntegrityError, TransferError
from llmctl.wire.environments import Blob

_BLOCK = 1 << 20


class Shelf:
    """Some files below one folder, `<folder>/<sha256>/<name>`; those that are not there are `missing`."""

    def __init__(self, folder: str, blobs: Sequence[Blob]) -> None:
        self._folder = folder
        self._blobs = {blob.sha256: blob for blob in blobs}
        self._changed = threading.Condition()
        self._failed = False
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.missing = [blob for blob in blobs if not self._there(blob)]
        self._got = {blob.sha256: blob.size for blob in blobs}
        for blob in self.missing:
            self._got[blob.sha256] = 0
        self._open: dict[str, int] = {}

    def __enter__(self) -> Shelf:
        for blob in self.missing:
            os.makedirs(os.path.dirname(self._path(blob)), mode=0o700, exist_ok=True)
            fd = os.open(self._beside(blob), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            self._open[blob.sha256] = fd
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.fail()
        for sha, fd in self._open.items():
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(self._beside(self._blobs[sha]))

    def free(self) -> int:
        """Bytes free for more."""
        return shutil.disk_usage(self._folder).free

    def fill(self, read: Callable[[int], bytes]) -> None:
        """Take what is missing, file after file.

        Raises:
            TransferError: it ended early. IntegrityError: a file is not what its hash says; OSError.
        """
        for blob in self.missing:
            self._fill_one(blob, read)

    def _fill_one(self, blob: Blob, read: Callable[[int], bytes]) -> None:
        total = hashlib.sha256()
        fd, left = self._open[blob.sha256], blob.size
        while left:
            data = read(min(left, _BLOCK))
            if not data:
                raise TransferError(f"{blob.name}: {blob.size - left} of {blob.size} bytes arrived")
            total.update(data)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            left -= len(data)
            self._add(blob, len(data))
        if total.hexdigest() != blob.sha256:
            raise IntegrityError(f"{blob.name} arrived damaged")
        os.rename(self._beside(blob), self._path(blob))

    def fail(self) -> None:
        """Nothing more will come: those who wait to hand it on give up."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def hand_on(self, sha256: str, peer: socket.socket) -> None:
        """Send one file as far as it is here, then as it comes.

        Raises:
            TransferError: it will not come. IntegrityError: it is not of this transfer; OSError.
        """
        blob = self._blobs.get(sha256)
        if blob is None:
            raise IntegrityError("a file that is not of this transfer")
        sent = 0
        with self._reader(blob) as file:
            while sent < blob.size:
                upto = self._wait_beyond(blob, sent)
                sent += peer.sendfile(file, sent, upto - sent)

    def _reader(self, blob: Blob) -> BinaryIO:
        """A file of its own to read from; one that is being written keeps its content when it is renamed."""
        fd = self._open.get(blob.sha256)
        return open(self._path(blob) if fd is None else f"/proc/self/fd/{fd}", "rb")

    def _wait_beyond(self, blob: Blob, sent: int) -> int:
        with self._changed:
            while self._got[blob.sha256] <= sent:
                if self._failed:
                    raise TransferError(f"{blob.name} did not come")
                self._changed.wait(1.0)
            return self._got[blob.sha256]

    def _add(self, blob: Blob, count: int) -> None:
        with self._changed:
            self._got[blob.sha256] += count
            self._changed.notify_all()

    def _there(self, blob: Blob) -> bool:
        try:
            return os.path.getsize(self._path(blob)) == blob.size
        except OSError:
            return False

    def _path(self, blob: Blob) -> str:
        return os.path.join(self._folder, blob.sha256, blob.name)

    def _beside(self, blob: Blob) -> str:
        return os.path.join(self._folder, blob.sha256, f".{os.getpid()}.part")
