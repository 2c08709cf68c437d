"""Files of a host into a local folder: one channel for all of them, raw bytes, each checked.

A file that only grows (a log) goes on from its offset. A whole file is written beside and renamed after its
size, and its sha256 where one is given, were found right. A path that leaves the folder is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.controller.transport.base import READ, Stream, Transport
from llmctl.controller.transport.safedest import SafeFile, checked_parts, safe_file
from llmctl.errors import IntegrityError, RemoteCommandError, TransferError

STAGE = "pull"
_STALL_S = 60.0
_HEAD = struct.Struct(">q")

Progress = Callable[[str, int], None]
"""Called with a path and the number of bytes that just arrived for it."""

# Says for each file how many bytes follow (negative: an errno), then the bytes.
_SENDER = r"""
import json, os, struct, sys
items = json.loads(sys.stdin.buffer.read())
root = os.path.expanduser(sys.argv[1])
def send(path, offset, end):
    try:
        fd = os.open(os.path.join(root, path), os.O_RDONLY)
    except OSError as error:
        os.write(1, struct.pack(">q", -error.errno))
        return
    left = max(0, min(end, os.fstat(fd).st_size) - offset)
    os.write(1, struct.pack(">q", left))
    os.lseek(fd, offset, os.SEEK_SET)
    while left:
        data = os.read(fd, min(left, 1 << 18))
        if not data:
            sys.exit("%s became shorter while it was read" % path)
        left -= len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(1, view):]
    os.close(fd)
for item in items:
    send(*item)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullItem:
    """One file below the root: bytes `offset` to `size` are fetched.

    `offset` > 0: the local file has that many bytes already and grows. `sha256` is that of a whole file.
    """

    path: str
    size: int
    offset: int = 0
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PullResult:
    """Files that are whole here now, and the bytes that travelled."""

    files: int
    bytes: int


_START = r"""
P=$1; command -v "$P" >/dev/null 2>&1 || P=$2; shift 2
case $P in "~/"*) P=$HOME/${P#??};; esac
exec "$P" -c "$@"
"""


def pull(
    transport: Transport,
    root: str,
    items: Sequence[PullItem],
    dest: Path,
    *,
    python: str = "python3",
    or_python: str = "",
    progress: Progress | None = None,
) -> PullResult:
    """Fetch `items` (relative to `root` on the host, `~` is the host's) to the same paths below `dest`.

    Args:
        or_python: taken where there is no `python`: that of the ranks may be inside a container.

    Raises:
        IntegrityError: a path that leaves `dest`, or content that is not what its sha256 says.
        TransferError: some files are not there or shorter than said; all the others have been pulled.
    """
    for item in items:
        checked_parts(item.path)
    if not items:
        return PullResult(files=0, bytes=0)
    dest.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    total = 0
    argv = ["sh", "-c", _START, "llmctl-pull", python, or_python or python, _SENDER, root]
    with transport.open(argv, stage=STAGE) as stream:
        _ask(stream, items)
        receiver = _Receiver(stream, transport.host)
        for item in items:
            total += receiver.item(item, dest, problems, progress)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise TransferError(problems[0] + more, host=transport.host, stage=STAGE)
    return PullResult(files=len(items), bytes=total)


def _ask(stream: Stream, items: Sequence[PullItem]) -> None:
    wanted = [[item.path, item.offset, item.size] for item in items]
    try:
        stream.write(json.dumps(wanted).encode(), deadline_s=_STALL_S)
        stream.end_input()
    except RemoteCommandError:
        return  # no python there: its exit status is read with the first file


class _Receiver:
    """Reads the sender's frames."""

    def __init__(self, stream: Stream, host: str) -> None:
        self._stream = stream
        self._host = host
        self._data = b""
        self._at = 0

    def item(self, item: PullItem, dest: Path, problems: list[str], progress: Progress | None) -> int:
        """One file; returns its bytes that travelled. What is wrong with only this file is noted."""
        count: int = _HEAD.unpack(self._exactly(_HEAD.size))[0]
        if count < 0:
            problems.append(f"{item.path}: {os.strerror(-count)}")
            return 0
        if count > max(0, item.size - item.offset):
            raise IntegrityError(f"{item.path}: more bytes than asked for", host=self._host, stage=STAGE)
        with safe_file(dest, item.path, offset=item.offset) as file:
            digest = self._copy(item, count, file, progress)
            if item.offset + count < item.size:
                problems.append(f"{item.path}: {item.offset + count} of {item.size} bytes are there")
            elif item.sha256 and not item.offset and digest != item.sha256:
                message = f"{item.path}: sha256 {digest[:12]}…, expected {item.sha256[:12]}…"
                raise IntegrityError(message, host=self._host, stage=STAGE)
            else:
                file.keep()
        return count

    def _copy(self, item: PullItem, count: int, file: SafeFile, progress: Progress | None) -> str:
        """`count` bytes into the file; their sha256, or "" where nobody asked."""
        digest = hashlib.sha256() if item.sha256 and not item.offset else None
        while count:
            data = self._some(count)
            count -= len(data)
            if digest:
                digest.update(data)
            file.write(data)
            if progress:
                progress(item.path, len(data))
        return digest.hexdigest() if digest else ""

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self._some(size - len(data))
        return data

    def _some(self, most: int) -> bytes:
        """At least one byte, at most `most`; the rest waits."""
        if self._at == len(self._data):
            self._data, self._at = self._stream.read(READ, deadline_s=_STALL_S), 0
        if not self._data:
            done = self._stream.wait(deadline_s=_STALL_S)
            reason = done.stderr_tail(1) or f"exit {done.code}"
            raise TransferError(f"the host stopped sending: {reason}", host=self._host, stage=STAGE)
        start = self._at
        self._at = min(start + most, len(self._data))
        return self._data[start : self._at]
