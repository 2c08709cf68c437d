"""The documents of a slice of input, as pieces of text in bounded memory.

A document is one piece, except for a text file larger than a unit: that one is cut behind a line end near
each border (or between two characters where there is none), always at the same places.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from llmctl.errors import ConfigError, IntegrityError
from llmctl.storage.corpus.compression import unpacked
from llmctl.storage.corpus.sources import UNIT_BYTES, Kind, Slice, SourceFile, expand, no_such_field, units
from llmctl.storage.faults import explained
from llmctl.storage.files import open_store

_LOOK_AHEAD = 64 << 10
"""How far behind a border a line end is looked for."""

_SNIFF = 8 << 10
_BOM = b"\xef\xbb\xbf"


class Piece(NamedTuple):
    """Text of a document; `begins` and `ends` say whether it is its first and its last piece."""

    text: str
    begins: bool
    ends: bool


def documents(sources: Sequence[str], *, field: str = "text") -> Iterator[str]:
    """Every document of `sources` in the order of a corpus; empty ones and binary files are left out.

    Raises:
        LlmctlError: as `pieces` and `expand` do.
    """
    parts: list[str] = []
    for unit in units(expand(sources), field):
        for part in unit.slices:
            for piece in [] if is_binary(part.file) else pieces(part, field):
                parts.append(piece.text)
                if piece.ends and (text := "".join(parts)):
                    yield text
                if piece.ends:
                    parts = []


def pieces(part: Slice, field: str) -> Iterator[Piece]:
    """The documents that begin in `part`, or the part of a large one.

    Raises:
        ConfigError: a line or row without `field`, or where it is no text.
        IntegrityError: a line that is no JSON, a damaged file.
        NotFoundError, TransferError, DeadlineError: it can't be read.
    """
    if part.file.kind is Kind.PARQUET:
        from llmctl.storage.corpus.parquet import texts

        return (Piece(text, True, True) for text in texts(part.file, part.start, field))
    if part.file.kind is Kind.JSONL:
        return _json_lines(part, field)
    return _compressed_text(part.file) if part.file.compression else _plain_text(part)


def is_binary(file: SourceFile) -> bool:
    """Whether a text file holds a zero byte near its start.

    Raises:
        ConfigError: it does, and was asked for by its name.
    """
    if file.kind is not Kind.TEXT:
        return False
    with opened(file) as stream:
        binary = b"\0" in stream.read(_SNIFF)
    if binary and file.named:
        raise ConfigError(f"{file.uri} is not text", hint="JSON lines end in .jsonl, parquet in .parquet")
    return binary


@contextmanager
def opened(file: SourceFile) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where it is compressed.

    Raises:
        IntegrityError: the compressed stream is damaged or cut.
        ConfigError: `.zst` without the `zstandard` package.
    """
    with explained("read", file.uri), open_store(file.root).open_read(file.path) as raw:
        if not file.compression:
            yield raw
            return
        with unpacked(raw, file.compression, file.uri) as stream:
            yield stream


def _json_lines(part: Slice, field: str) -> Iterator[Piece]:
    """Lines that begin in the slice. Only `\\n` ends a line: U+2028 and the like are text."""
    with opened(part.file) as stream:
        at = 0
        if part.start:
            stream.seek(part.start - 1)
            # The line that holds the byte before the slice belongs to the slice before.
            at = part.start - 1 + len(stream.readline())
        number = 0
        while part.file.compression or at < part.end:
            line = stream.readline()
            if not line:
                return
            number += 1
            content = line if at else line.removeprefix(_BOM)
            at += len(line)
            if content.strip():
                yield Piece(_field_of(content, field, part, number), True, True)


def _field_of(line: bytes, field: str, part: Slice, number: int) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{_line(part, number)}: not a JSON line: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError(
            f"{_line(part, number)}: a {type(row).__name__}, not an object with a key `{field}`"
        )
    if field not in row:
        raise no_such_field(_line(part, number), field, row)
    value: Any = row[field]
    if not isinstance(value, str):
        raise ConfigError(f"{_line(part, number)}: `{field}` is {type(value).__name__}, not text")
    return value


def _line(part: Slice, number: int) -> str:
    """`file:line`; what lies before the slice is counted only now, when there is something to report."""
    before = 0
    if part.start:
        with opened(part.file) as stream:
            stream.seek(part.start - 1)
            left = part.start - 1 + len(stream.readline())
            stream.seek(0)
            while left > 0 and (chunk := stream.read(min(left, 1 << 20))):
                before += chunk.count(b"\n")
                left -= len(chunk)
    return f"{part.file.uri}:{before + number}"


def _plain_text(part: Slice) -> Iterator[Piece]:
    size = part.file.size
    with opened(part.file) as stream:
        start, end = (_border(stream, at, size) for at in (part.start, part.end))
        if start == end:
            return  # the slice before reached further than this one
        stream.seek(start)
        data = stream.read(end - start)
    if len(data) != end - start:
        raise IntegrityError(f"{part.file.uri}: became shorter while it was read")
    yield Piece(data.decode("utf-8", "surrogateescape"), start == 0, end == size)


def _border(stream: BinaryIO, at: int, size: int) -> int:
    """The place at or a little behind `at` where a text file may be cut."""
    if at in (0, size):
        return at
    stream.seek(at)
    return at + _cut(stream.read(_LOOK_AHEAD))


def _cut(ahead: bytes) -> int:
    """How many bytes of `ahead` belong to what is before it."""
    newline = ahead.find(b"\n")
    if newline >= 0:
        return newline + 1
    # Bytes 10xxxxxx continue a character; there are at most three of them.
    return next((i for i, byte in enumerate(ahead[:4]) if byte & 0xC0 != 0x80), 0)


def _compressed_text(file: SourceFile) -> Iterator[Piece]:
    """As `_plain_text`, but in one go: it can't be entered in the middle, and its size is not known."""
    with opened(file) as stream:
        begins, data = True, stream.read(UNIT_BYTES)
        while data:
            ahead = stream.read(_LOOK_AHEAD)
            cut = _cut(ahead) if ahead else 0
            rest = ahead[cut:]
            following = rest + stream.read(UNIT_BYTES - len(rest)) if ahead else b""
            yield Piece((data + ahead[:cut]).decode("utf-8", "surrogateescape"), begins, not following)
            begins, data = False, following
