"""`.gz` and `.zst` as streams of what is in them; a damaged or cut one is an error, not an end."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from llmctl.errors import ConfigError, IntegrityError

_PACKED = 16 << 10
"""Compressed bytes at a time: what comes out of them is held in memory."""


@contextmanager
def unpacked(raw: BinaryIO, compression: str, where: str) -> Iterator[BinaryIO]:
    """The content of `raw`, which is `gz` or `zst` and called `where`; several members or frames are one.

    Raises:
        IntegrityError: the compressed stream is damaged or cut.
        ConfigError: `.zst` without the `zstandard` package.
    """
    stream, damage = _gz(raw) if compression == "gz" else _zst(raw, where)
    try:
        yield stream
    except (EOFError, gzip.BadGzipFile, damage) as error:
        raise IntegrityError(f"{where}: damaged {compression} file: {error}") from error


def _gz(raw: BinaryIO) -> tuple[BinaryIO, type[Exception]]:
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb")), zlib.error


def _zst(raw: BinaryIO, where: str) -> tuple[BinaryIO, type[Exception]]:
    try:
        import zstandard
    except ImportError:
        raise ConfigError(f"{where} needs the `zstandard` package", hint="pip install zstandard") from None
    frames = _Frames(raw, lambda: zstandard.ZstdDecompressor().decompressobj())
    return cast(BinaryIO, io.BufferedReader(frames, 1 << 20)), zstandard.ZstdError


class _Frames(io.RawIOBase):
    """Zstandard frames one after the other. The package's own reader takes a cut frame for the end."""

    def __init__(self, raw: BinaryIO, new_frame: Callable[[], Any]) -> None:
        self._raw = raw
        self._new_frame = new_frame
        self._frame: Any = None
        self._packed = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._packed = self._packed or self._raw.read(_PACKED)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            self._unpack()
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpack(self) -> None:
        self._frame = self._frame or self._new_frame()
        self._ready = self._frame.decompress(self._packed)
        self._packed = b""
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
