"""Files that come down in several ranges at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmctl.storage import streams
from llmctl.storage.hashing import Digest


def test_a_write_that_takes_only_a_part_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is almost full may take less than it was given: the rest is neither lost nor shifted."""
    data, write = os.urandom(300_000), os.pwrite
    monkeypatch.setattr(streams, "_RANGE", 100_000)
    monkeypatch.setattr(os, "pwrite", lambda target, piece, at: write(target, bytes(piece[:7000]), at))

    def fetch(start: int, end: int, sink: Callable[[bytes], object]) -> None:
        for at in range(start, end, 20_000):
            sink(data[at : min(at + 20_000, end)])

    with (tmp_path / "file").open("w+b") as file:
        streams.fetch_ranges(fetch, len(data), file.fileno(), digest := Digest())
        assert digest.size == len(data)
        assert file.read() == data
