"""Fingerprints: what they are, and where they say that two files differ."""

from __future__ import annotations

import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import IntegrityError
from llmctl.storage.hashing import Digest, check, damaged_ranges
from llmctl.wire.manifests import CRC_BLOCK, FileEntry

MIB = CRC_BLOCK


def entry(*portions: bytes) -> FileEntry:
    digest = Digest()
    for portion in portions:
        digest.update(portion)
    return digest.entry("x")


@given(st.lists(st.integers(0, 3 * MIB // 2), max_size=5))
def test_portions_do_not_matter(sizes: list[int]) -> None:
    """However the bytes arrive: SHA-256 of all, a CRC-32 of each MiB, the size."""
    data = bytes(range(256)) * (sum(sizes) // 256 + 1)
    data = data[: sum(sizes)]
    portions, at = [], 0
    for size in sizes:
        portions.append(data[at : at + size])
        at += size
    crcs = "".join(f"{zlib.crc32(data[at : at + MIB]):08x}" for at in range(0, len(data), MIB))
    assert entry(*portions) == FileEntry("x", len(data), hashlib.sha256(data).hexdigest(), crcs)


def test_damage_is_located() -> None:
    """Neighbouring bad blocks are one range; the last one ends with the file."""
    good = bytearray(5 * MIB + 10)
    bad = bytearray(good)
    for at in (MIB, 3 * MIB - 1, 5 * MIB + 9):
        bad[at] ^= 1
    ranges = damaged_ranges(entry(bytes(good)), entry(bytes(bad)))
    assert ranges == [(MIB, 3 * MIB), (5 * MIB, 5 * MIB + 10)]
    with pytest.raises(IntegrityError, match=r"; damaged within bytes 1048576-3145727, 5242880-5242889$"):
        check("x", entry(bytes(good)), entry(bytes(bad)))


def test_a_manifest_without_crcs_still_judges() -> None:
    """Manifests of an older llmctl have none: damage is found all the same, only not located."""
    old = FileEntry("x", 3, hashlib.sha256(b"abc").hexdigest())
    check("x", old, entry(b"abc"))
    with pytest.raises(IntegrityError, match=r"found [0-9a-f]{64}$"):
        check("x", old, entry(b"abd"))
