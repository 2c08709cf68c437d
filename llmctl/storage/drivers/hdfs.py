"""`hdfs://` by hdfs-native (Rust, no JVM), through its own client.

Its fsspec layer cuts names at `?` and `#` (it takes them for parts of a URL) and refuses to move onto a file
that is there; the client below does neither. A write that fails leaves an empty or partial file (writes go to
a temporary name, which is removed) and a writer that blocks whoever collects it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

from llmctl.storage.deadline import budget
from llmctl.storage.drivers.base import CHUNK, Page, Sink
from llmctl.storage.files import StoreFile

_JOINED = 16
_NO_QUOTA = 1 << 63

_BUSY = ("SafeMode", "Standby", "Retriable", "NotReplicatedYet", "could only be written to 0 of")
"""What a NameNode says while it, or its DataNodes, come up."""


class HdfsDriver:
    """A `Driver` over `hdfs_native.Client`; paths are absolute."""

    renames = True
    checks = True  # a CRC-32C of each 512 bytes, which the DataNodes compare before they acknowledge

    def __init__(self, client: Any) -> None:
        self._client = client

    def info(self, path: str) -> StoreFile:
        status = self._client.get_file_info(path)
        if status.isdir:
            raise IsADirectoryError(path)
        return _store_file(status)

    def is_folder(self, path: str) -> bool:
        try:
            return bool(self._client.get_file_info(path).isdir)
        except FileNotFoundError:
            return False

    def page(self, folder: str, at: Any) -> Page:
        # One folder per request: a failure in a large tree repeats little.
        todo: list[str] = [folder or "/"] if at is None else at
        files: list[StoreFile] = []
        try:
            for status in self._client.list_status(todo[0], False):
                if status.isdir:
                    todo = [*todo, status.path]
                elif status.path != todo[0]:  # a file is listed as itself
                    files.append(_store_file(status))
        except FileNotFoundError:
            files = []
        return Page(files=files, next=todo[1:] or None)

    def read(self, path: str, sink: Sink, start: int = 0, end: int | None = None) -> None:
        beat = budget().beat
        reader = self._client.read(path)
        stop = len(reader) if end is None else end
        # It hands out 64 KiB at a time: too little to give up the interpreter's lock for, thread by thread.
        parts: list[bytes] = []
        for part in reader.read_range_stream(start, stop - start):
            parts.append(part)
            if len(parts) == _JOINED:
                beat()
                sink(b"".join(parts))
                parts.clear()
        sink(b"".join(parts))

    def write(self, path: str, opened: Callable[[], BinaryIO], size: int) -> None:
        from hdfs_native import WriteOptions

        beat = budget().beat
        with opened() as source:
            beat()
            # Not the client's FileWriter: as an io object it closes itself when collected, in any thread at
            # any time, and a close whose servers are gone never returns.
            writer = self._client.inner.create(path, WriteOptions(overwrite=True))
            try:
                while chunk := source.read(CHUNK):
                    beat()
                    writer.write(chunk)
                beat()
                writer.close()
            except BaseException:
                # Also in a thread that nobody waits for any more: nobody else could.
                with suppress(OSError, RuntimeError):
                    self.remove(path)
                raise

    def replace(self, source: str, target: str) -> None:
        self._client.rename(source, target, True)

    def move_folder(self, source: str, target: str) -> None:
        self._client.rename(source, target, False)

    def remove(self, path: str) -> None:
        self._client.delete(path, False)

    def remove_all(self, folder: str, page: Page) -> None:
        self._client.delete(folder, True)

    def make_folder(self, path: str) -> None:
        self._client.mkdirs(path, 0o755, True)

    def free(self, folder: str) -> int | None:
        # The client can't ask for the cluster's capacity; a quota it can.
        summary = self._client.get_content_summary(folder or "/")
        if summary.space_quota >= _NO_QUOTA:
            return None
        return max(0, int(summary.space_quota - summary.space_consumed))

    def unfinished(self, folder: str) -> list[tuple[str, float]]:
        return []

    def abort(self, name: str) -> None:
        raise FileNotFoundError(name)

    def is_passing(self, error: BaseException) -> bool:
        # Refusals have builtin types, or are an RPCError; the rest is the network's and the DataNodes'.
        if "RPCError(" in str(error):
            return any(sign in str(error) for sign in _BUSY)
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
            return False
        refusals = (
            FileNotFoundError,
            FileExistsError,
            PermissionError,
            IsADirectoryError,
            NotADirectoryError,
        )
        return isinstance(error, (OSError, RuntimeError)) and not isinstance(error, refusals)


def _store_file(status: Any) -> StoreFile:
    at = int(status.modification_time)  # ms
    return StoreFile(path=status.path, size=int(status.length), version=str(at), modified=at / 1000)
