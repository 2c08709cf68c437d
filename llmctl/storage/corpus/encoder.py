"""One unit of input to token files; also the process that does so: `python -m llmctl.storage.corpus.encoder`.

The process reads an EncodeSetup and then Units, one JSON line each, from stdin, and answers each with Reply
lines. It ends when stdin does, so it can't outlive the process that started it.
"""

from __future__ import annotations

import os
import signal
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Optional

from llmctl.errors import LlmctlError
from llmctl.storage.corpus.documents import Piece, is_binary, pieces
from llmctl.storage.corpus.sources import Unit
from llmctl.storage.corpus.tokenizer import Tokenizer, open_tokenizer
from llmctl.storage.faults import explained
from llmctl.wire import codec

BATCH_CHARS = 1 << 20
BATCH_PIECES = 2048
"""A batch ends with whichever comes first: bounds memory for long documents and for many short ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSetup:
    """What all units of a run have in common. `dtype` is numpy's (`<u2`, `<u4`); `folder` gets the output."""

    tokenizer: str
    eos: int
    dtype: str
    field: str
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One unit's output: `tokens` items in `unit-N.bin`; where documents begin, as uint64, in `unit-N.idx`.

    `skipped` are binary files found in folders, `empty` documents without text: neither is in the corpus.
    """

    number: int
    bytes: int
    tokens: int
    documents: int
    skipped: int
    empty: int

    def bin(self, folder: Path) -> Path:
        return folder / f"unit-{self.number}.bin"

    def idx(self, folder: Path) -> Path:
        return folder / f"unit-{self.number}.idx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An error of ours on its way to the other process."""

    kind: str
    message: str
    hint: Optional[str] = None
    stage: Optional[str] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A line of the process: nothing set means alive and working."""

    encoded: Optional[Encoded] = None
    fault: Optional[Fault] = None


class UnitEncoder:
    """Encodes units one after the other; `beat` is called after every batch."""

    def __init__(self, setup: EncodeSetup, tokenizer: Tokenizer, beat: Callable[[], None]) -> None:
        self._setup = setup
        self._tokenizer = tokenizer
        self._beat = beat
        self._skipped = self._empty = 0

    def encode(self, unit: Unit) -> Encoded:
        """Tokenise `unit` into the setup's folder.

        Raises:
            LlmctlError: the input can't be read or used, or the output not written.
        """
        self._skipped = self._empty = 0
        folder = Path(self._setup.folder)
        out = Encoded(number=unit.number, bytes=unit.bytes, tokens=0, documents=0, skipped=0, empty=0)
        with (
            explained("write", str(folder)),
            out.bin(folder).open("wb") as bin_,
            out.idx(folder).open("wb") as idx,
        ):
            tokens, documents = self._write(unit, bin_, idx)
        return Encoded(
            number=unit.number,
            bytes=unit.bytes,
            tokens=tokens,
            documents=documents,
            skipped=self._skipped,
            empty=self._empty,
        )

    def _write(self, unit: Unit, bin_: BinaryIO, idx: BinaryIO) -> tuple[int, int]:
        tokens = documents = 0
        for batch in _batches(self._pieces(unit)):
            ids, lengths = self._tokenizer.encode_documents(
                [piece.text for piece in batch], self._setup.dtype, [piece.ends for piece in batch]
            )
            starts = array("Q")
            for piece, length in zip(batch, lengths.tolist(), strict=True):
                if piece.begins:
                    starts.append(tokens)
                tokens += length
            documents += len(starts)
            bin_.write(ids.data)
            starts.tofile(idx)
            self._beat()
        return tokens, documents

    def _pieces(self, unit: Unit) -> Iterator[Piece]:
        for part in unit.slices:
            if is_binary(part.file):
                self._skipped += part.start == 0
                continue
            for piece in pieces(part, self._setup.field):
                if piece.text or not (piece.begins and piece.ends):
                    yield piece
                else:
                    self._empty += 1


def _batches(stream: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in stream:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARS or len(batch) >= BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def main() -> None:
    """Serve the process on the other end of stdin and stdout until it ends."""
    # Ctrl-C is the parent's to handle; it ends this process by closing stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    setup = codec.loads(EncodeSetup, sys.stdin.readline())

    def beat() -> None:
        if os.getppid() != parent:
            os._exit(1)  # killed: nobody wants the rest of this unit
        _say(Reply())

    try:
        encoder = UnitEncoder(setup, open_tokenizer(setup.tokenizer, eos=setup.eos), beat)
        for line in sys.stdin:
            _say(Reply(encoded=encoder.encode(codec.loads(Unit, line))))
    except LlmctlError as error:
        fault = Fault(kind=type(error).__name__, message=error.message, hint=error.hint, stage=error.stage)
        _say(Reply(fault=fault))


def _say(reply: Reply) -> None:
    sys.stdout.write(codec.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
