"""One safetensors file, read from any store and written to any stream, a tensor at a time.

The `safetensors` package maps local files only; a model in HDFS or S3 would have to be copied first. The
format is eight bytes of length, a JSON header, and the raw values, so that reading a tensor, or some rows of
it, is one ranged read: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from llmctl.errors import IntegrityError

MAX_HEADER = 100_000_000
"""Bytes of header at most, as in the reference reader: a damaged length must not allocate the memory."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a tensor lies: `start` and `end` are bytes of the file; `dtype` is the format's own name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first axis."""
        return (self.end - self.start) // max(1, self.shape[0]) if self.shape else self.end - self.start


class TensorFile:
    """The tensors of one open safetensors file.

    Args:
        stream: seekable; the caller closes it.
        where: what to call it in errors.
        size: bytes of the file.

    Raises:
        IntegrityError: not a safetensors file, or cut short.
    """

    def __init__(self, stream: BinaryIO, *, where: str, size: int) -> None:
        self.where = where
        self._stream = stream
        self.entries = {entry.name: entry for entry in _read_header(stream, where, size)}

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """One tensor as stored, or its rows `start` to `end` of the first axis; nothing else is read.

        Raises:
            IntegrityError: a type that this reader does not know, or the file ends early.
        """
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise IntegrityError(f"{self.where}: {name} is of type {entry.dtype}", stage="model")
        shape, start, end = entry.shape, entry.start, entry.end
        if rows is not None:
            shape = (rows[1] - rows[0], *shape[1:])
            start, end = start + rows[0] * entry.row_bytes, start + rows[1] * entry.row_bytes
        buffer = bytearray(end - start)
        self._fill(buffer, start)
        if not buffer:
            return torch.empty(shape, dtype=DTYPES[entry.dtype])
        return torch.frombuffer(buffer, dtype=DTYPES[entry.dtype]).view(shape)

    def _fill(self, buffer: bytearray, start: int) -> None:
        self._stream.seek(start)
        view = memoryview(buffer)
        while view:
            count = self._stream.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise IntegrityError(f"{self.where}: ends {len(view)} bytes early", stage="model")
            view = view[count:]


def _read_header(stream: BinaryIO, where: str, size: int) -> list[Entry]:
    head = stream.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise IntegrityError(f"{where}: not a safetensors file, or cut short", stage="model")
    try:
        header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        entries = [_entry(name, value, 8 + length) for name, value in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{where}: the header is damaged: {error!r}", stage="model") from None
    for entry in entries:
        _check(entry, where, size)
    return entries


def _entry(name: str, value: Mapping[str, Any], base: int) -> Entry:
    start, end = value["data_offsets"]
    return Entry(
        name=name,
        dtype=str(value["dtype"]),
        shape=tuple(int(length) for length in value["shape"]),
        start=base + int(start),
        end=base + int(end),
    )


def _check(entry: Entry, where: str, size: int) -> None:
    whole = 0 <= entry.start <= entry.end <= size
    if whole and entry.dtype in DTYPES:
        whole = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize == entry.end - entry.start
    if not whole:
        raise IntegrityError(
            f"{where}: {entry.name} does not fit the file: cut short, or damaged", stage="model"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A tensor that a file to be written will hold."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_header(target: BinaryIO, planned: Iterable[Planned]) -> dict[str, int]:
    """Write the header of a file with these tensors. Returns the byte at which each one's values begin."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    offset = 0
    for tensor in planned:
        end = offset + tensor.bytes
        entry = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": (offset, end)}
        header[tensor.name] = entry
        offsets[tensor.name] = offset
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers that map the file want aligned values
    target.write(struct.pack("<Q", len(text)) + text)
    return {name: 8 + len(text) + offset for name, offset in offsets.items()}


def write_tensor(target: BinaryIO, tensor: Tensor) -> None:
    """The values of one tensor, little-endian."""
    if tensor.numel() == 0:
        return
    # Not through numpy: it has no bf16, and a host may have none of it.
    buffer = bytearray(tensor.numel() * tensor.element_size())
    torch.frombuffer(buffer, dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))
    target.write(buffer)
