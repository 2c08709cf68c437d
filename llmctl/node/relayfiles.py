"""The files of one relay: written as they come, read by those who hand them on, renamed when whole.

They lie in folders named by their content, or, where the request has `places`, under names of their own. Then
the last of them is their manifest: it comes last, and where another one stands nothing is touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import BinaryIO, Optional

from llmctl.errors import IntegrityError, TransferError
from llmctl.node.wheels import digest
from llmctl.wire.environments import Blob

_BLOCK = 1 << 20
_COPY = ".copy.part"


class Shelf:
    """Some files below one folder; those that are not there are `missing`.

    Args:
        places: paths below the folder, by hash; without it each file is `<sha256>/<name>`.

    Raises:
        IntegrityError: a path that leaves the folder, or the folder holds something else.
    """

    def __init__(
        self, folder: str, blobs: Sequence[Blob], places: Optional[Mapping[str, Sequence[str]]] = None
    ) -> None:
        self._folder = folder
        self._blobs = {blob.sha256: blob for blob in blobs}
        self._places = places or {}
        self._changed = threading.Condition()
        self._failed = False
        os.makedirs(folder, mode=0o777 if self._places else 0o700, exist_ok=True)
        if self._places:
            self._refuse_another(blobs[-1])
        self.missing = [blob for blob in blobs if not self._there(blob)]
        self._got = {blob.sha256: blob.size for blob in blobs}
        for blob in self.missing:
            self._got[blob.sha256] = 0
        self._done = set(self._got) - {blob.sha256 for blob in self.missing}

    def __enter__(self) -> Shelf:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.fail()

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
        beside = self._beside(blob)
        os.makedirs(os.path.dirname(beside), mode=0o777 if self._places else 0o700, exist_ok=True)
        mode = 0o666 if self._places else 0o600
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            self._write(blob, fd, read)
            self._into_place(blob, beside)
        finally:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(beside)

    def _write(self, blob: Blob, fd: int, read: Callable[[int], bytes]) -> None:
        total, left = hashlib.sha256(), blob.size
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

    def _into_place(self, blob: Blob, beside: str) -> None:
        """Under its name, and as a copy under any further one: equal files are sent once."""
        first, *others = self._paths(blob)
        for path in others:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            shutil.copyfile(beside, path + _COPY)
            os.rename(path + _COPY, path)
        os.rename(beside, first)
        with self._changed:
            self._done.add(blob.sha256)

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
        if blob.size == 0:
            return
        self._wait_beyond(blob, 0)
        sent = 0
        with self._reader(blob) as file:
            while sent < blob.size:
                upto = self._wait_beyond(blob, sent)
                sent += peer.sendfile(file, sent, upto - sent)

    def _reader(self, blob: Blob) -> BinaryIO:
        """A file of its own to read from; one that is being written keeps its content when it is renamed."""
        with self._changed:
            done = blob.sha256 in self._done
        with contextlib.suppress(FileNotFoundError):
            return open(self._paths(blob)[0] if done else self._beside(blob), "rb")
        return open(self._paths(blob)[0], "rb")  # renamed just now

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
        """In a folder named by its content the size is enough: it was checked before it got there."""
        try:
            sizes = {os.path.getsize(path) for path in self._paths(blob)}
        except OSError:
            return False
        if sizes != {blob.size}:
            return False
        return not self._places or all(digest(path) == blob.sha256 for path in self._paths(blob))

    def _refuse_another(self, manifest: Blob) -> None:
        path = self._paths(manifest)[0]
        if os.path.lexists(path) and not self._there(manifest):
            raise IntegrityError(
                f"{path} is there and is another one", hint="name another folder, or remove that one there"
            )

    def _paths(self, blob: Blob) -> list[str]:
        places = self._places.get(blob.sha256)
        if places is None:
            return [os.path.join(self._folder, blob.sha256, blob.name)]
        for place in places:
            if os.path.isabs(place) or ".." in place.split("/"):
                raise IntegrityError(f"{place!r} is not a path below a folder")
        return [os.path.join(self._folder, place) for place in places]

    def _beside(self, blob: Blob) -> str:
        folder, name = os.path.split(self._paths(blob)[0])
        return os.path.join(folder, f".{name}.{os.getpid()}.part")
