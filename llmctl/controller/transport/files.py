"""Single files to and from a host: streamed through `cat`, written beside and renamed, their size checked."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from llmctl.controller.transport.base import READ, Completed, Stream, Transport
from llmctl.errors import RemoteCommandError, TransferError

_STALL_S = 60.0
_CHUNK = 1 << 20

Progress = Callable[[int], None]

_PUT = r"""
umask 077
to=$1 beside=.$2 size=$3 mode=$4
case $to in "~/"*) to=$HOME/${to#"~/"} ;; esac
[ ! -d "$to" ] || { echo "$to is a directory" >&2; exit 1; }
folder=$(dirname -- "$to") || exit 1
mkdir -p -- "$folder" && cd -- "$folder" || exit 1
trap 'rm -f -- "$beside"' EXIT
trap 'exit 129' HUP INT TERM PIPE
cat >"$beside" || exit 1
got=$(($(wc -c <"$beside")))
[ "$got" = "$size" ] || { echo "$got of $size bytes arrived" >&2; exit 1; }
chmod "$mode" "$beside" && mv -f -- "$beside" "$to"
"""

_GET = r"""
from=$1
case $from in "~/"*) from=$HOME/${from#"~/"} ;; esac
[ -f "$from" ] || { echo "no file $from" >&2; exit 1; }
wc -c <"$from" && exec cat -- "$from"
"""


def push_file(
    transport: Transport, data: bytes, dest: str, *, mode: int = 0o600, deadline_s: float = 60.0
) -> None:
    """Write `data` to `dest` on the host (`~/` is the host's); its folder is made, 0700.

    Raises:
        TransferError: it could not be written; whatever was at `dest` is still there.
    """
    argv = _put_argv(dest, len(data), mode)
    done = transport.run(argv, stdin=data, deadline_s=deadline_s, stage="push")
    _check(done, transport.host, "push", dest)


def put_file(
    transport: Transport, source: Path, dest: str, *, mode: int = 0o600, progress: Progress | None = None
) -> int:
    """Stream a file of any size to the host; returns its size. Raises as `push_file` does."""
    with source.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        with transport.open(_put_argv(dest, size, mode), stage="push") as stream:
            with contextlib.suppress(RemoteCommandError):  # its exit status tells why
                _write_all(stream, _chunks(file.read, size), progress)
            _check(stream.wait(deadline_s=_STALL_S), transport.host, "push", dest)
    return size


def get_file(transport: Transport, source: str, dest: Path, *, progress: Progress | None = None) -> int:
    """Stream a file of any size from the host to `dest`; returns its size.

    Raises:
        TransferError: there is no such file, or it did not arrive whole; `dest` is as it was.
    """
    argv = ["sh", "-c", _GET, "llmctl-get", source]
    dest.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=dest.parent, prefix=f".{dest.name}.")
    try:
        with os.fdopen(handle, "wb", buffering=0) as file, transport.open(argv, stage="pull") as stream:
            size, got = _receive(stream, file.write, progress)
            done = stream.wait(deadline_s=_STALL_S)
        _check(done, transport.host, "pull", source)
        if got != size:
            message = f"{source}: {got} of {size} bytes arrived"
            raise TransferError(message, host=transport.host, stage="pull")
        Path(beside).replace(dest)
    finally:
        Path(beside).unlink(missing_ok=True)
    return got


def _put_argv(dest: str, size: int, mode: int) -> list[str]:
    beside = f"llmctl-{secrets.token_hex(8)}"
    return ["sh", "-c", _PUT, "llmctl-put", dest, beside, str(size), f"{mode:o}"]


def _chunks(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    """`size` bytes, or fewer where the file has become shorter."""
    while size > 0 and (chunk := read(min(size, _CHUNK))):
        size -= len(chunk)
        yield chunk


def _write_all(stream: Stream, chunks: Iterable[bytes], progress: Progress | None) -> None:
    for chunk in chunks:
        stream.write(chunk, deadline_s=_STALL_S)
        if progress:
            progress(len(chunk))
    stream.end_input()


def _receive(
    stream: Stream, write: Callable[[bytes], int | None], progress: Progress | None
) -> tuple[int, int]:
    """The announced size, and how many bytes came."""
    head = b""
    while b"\n" not in head:
        data = stream.read(_CHUNK, deadline_s=_STALL_S)
        if not data:
            return 0, 0
        head += data
    announced, _, data = head.partition(b"\n")
    got = 0
    while True:
        got += len(data)
        if data:
            _write_whole(write, data)
            if progress:
                progress(len(data))
        data = stream.read(READ, deadline_s=_STALL_S)
        if not data:
            return int(announced), got


def _write_whole(write: Callable[[bytes], int | None], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[write(view) or 0 :]  # type: ignore[arg-type]


def _check(done: Completed, host: str, stage: str, path: str) -> None:
    if not done.ok:
        reason = done.stderr_tail(1) or f"exit {done.code}"
        raise TransferError(f"{path}: {reason}", host=host, stage=stage)
