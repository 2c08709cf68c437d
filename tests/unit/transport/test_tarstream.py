"""Our tar writer is read by GNU tar and by Python alike."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from llmctl.controller.transport.tarstream import _header, tar_stream
from llmctl.controller.transport.tree import scan
from llmctl.errors import IntegrityError

NAMES = ["plain", "with space", "new\nline", "-rf", "é/ü", "n" * 100, "n" * 101, "d/" * 60 + "deep", "empty"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for number, name in enumerate([*NAMES, os.fsdecode(b"caf\xe9")]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name == "empty" else b"x" * (500 + number))
    (root / "plain").chmod(0o755)
    (root / "link").symlink_to("t" * 120)
    return root


def test_gnu_tar_restores_the_tree(root: Path, tmp_path: Path) -> None:
    """Unpacked by GNU tar it is the same tree: names, bytes, exec bits, links."""
    tree = scan(root, cache_dir=tmp_path)
    data = b"".join(tar_stream(root, tree.entries))
    assert len(data) % 10240 == 0
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xpof", "-", "-C", tmp_path / "out"], input=data, check=True)
    assert scan(tmp_path / "out", cache_dir=tmp_path).manifest == tree.manifest


def test_tarfile_reads_it(root: Path, tmp_path: Path) -> None:
    """Python's tarfile sees the same names, sizes, modes and link targets."""
    tree = scan(root, cache_dir=tmp_path)
    data = b"".join(tar_stream(root, tree.entries))
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        members = {m.name: m for m in archive}
    assert sorted(members) == [entry.path for entry in tree.entries]
    assert [members[e.path].size for e in tree.entries] == [e.size for e in tree.entries]
    assert members["plain"].mode == 0o700
    assert members["empty"].mode == 0o600
    assert members["link"].linkname == "t" * 120


def test_huge_size_field() -> None:
    """A file of 9 GiB has a size that tarfile reads back."""
    header = _header(b"big", b"0", mode=0o600, size=9 << 30, mtime=-5)
    info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    assert (info.size, info.mtime) == (9 << 30, 0)


@pytest.mark.parametrize("change", ["content", "size", "gone", "link"])
def test_change_after_the_scan_is_an_error(root: Path, tmp_path: Path, change: str) -> None:
    """What is sent is what was hashed, or nothing."""
    tree = scan(root, cache_dir=tmp_path)
    file = root / "plain"
    size = file.stat().st_size
    file.unlink()
    if change == "content":
        file.write_bytes(b"y" * size)
    elif change == "size":
        file.write_bytes(b"y")
    elif change == "link":
        file.symlink_to("/etc/passwd")
    with pytest.raises(IntegrityError, match="plain changed"):
        list(tar_stream(root, tree.entries))
