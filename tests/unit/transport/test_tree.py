"""A tree's hash says what is in it, and nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import cast

import pytest

from llmctl.controller.transport.tree import Tree, scan
from llmctl.controller.transport.treecache import Record, TreeCache
from llmctl.errors import ConfigError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "pkg").mkdir(parents=True)
    (root / "pkg/a.py").write_text("a = 1\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("pkg/a.py")
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def settle(root: Path) -> None:
    """Make the files old enough to be believed without reading them."""
    for path in root.rglob("*"):
        os.utime(path, (time.time() - 60,) * 2, follow_symlinks=False)


def test_entries_say_kind_size_and_hash(root: Path, cache: Path) -> None:
    """Files, executables and links are told apart; paths are sorted."""
    tree = scan(root, cache_dir=cache)
    assert [(e.path, e.kind, e.size, e.target) for e in tree.entries] == [
        ("link", "l", 0, "pkg/a.py"),
        ("pkg/a.py", "f", 6, ""),
        ("run.sh", "x", 10, ""),
    ]
    assert (tree.files, tree.bytes) == (3, 16)


def test_hash_ignores_times_and_place(root: Path, cache: Path, tmp_path: Path) -> None:
    """The same content elsewhere, at another time, has the same hash."""
    before = scan(root, cache_dir=cache).hash
    settle(root)
    moved = root.rename(tmp_path / "elsewhere")
    (moved / "empty folder").mkdir()
    assert scan(moved, cache_dir=cache).hash == before


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "pkg/a.py").write_text("a = 2\n"),
        lambda root: (root / "run.sh").chmod(0o644),
        lambda root: (root / "pkg/a.py").rename(root / "pkg/b.py"),
        lambda root: (root / "link").unlink(),
        lambda root: ((root / "link").unlink(), (root / "link").symlink_to("run.sh")),
    ],
    ids=["content", "exec bit", "name", "deletion", "link target"],
)
def test_hash_sees_every_change(root: Path, cache: Path, change: object) -> None:
    """Content, exec bit, name, presence and link target each change the hash, also through a warm cache."""
    settle(root)
    before = scan(root, cache_dir=cache).hash
    change(root)  # type: ignore[operator]
    assert scan(root, cache_dir=cache).hash != before


def test_same_size_and_mtime_but_other_content(root: Path, cache: Path) -> None:
    """A change that restores size and mtime is seen by its ctime."""
    settle(root)
    before = scan(root, cache_dir=cache).hash
    info = (root / "pkg/a.py").stat()
    (root / "pkg/a.py").write_text("b = 1\n")
    os.utime(root / "pkg/a.py", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert scan(root, cache_dir=cache).hash != before


def remembered(root: Path, cache: Path, path: str) -> Record:
    """What the cache says of a file that is directly in a folder of the root, or in the root."""
    prefix, slash, name = path.rpartition("/")
    folder = TreeCache.load(cache, root)._before[prefix + slash]
    return cast(Record, folder.records[name])


def test_warm_scan_reads_no_file(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unchanged tree is known without opening one of its files."""
    settle(root)
    before = scan(root, cache_dir=cache)
    monkeypatch.setattr("llmctl.controller.transport.treewalk._digest", None)
    assert scan(root, cache_dir=cache).hash == before.hash
    assert remembered(root, cache, "pkg/a.py")[6] == before.entries[1].sha256


def test_fresh_files_are_read_again(root: Path, cache: Path) -> None:
    """A file written less than two seconds before the scan is not trusted by its stat data next time."""
    scan(root, cache_dir=cache)
    assert remembered(root, cache, "pkg/a.py")[0] == -1
    settle(root)
    scan(root, cache_dir=cache)
    assert remembered(root, cache, "pkg/a.py")[0] == (root / "pkg/a.py").stat().st_ctime_ns


def test_one_change_appends_one_folder(root: Path, cache: Path) -> None:
    """A changed file costs its folder's frame; an unchanged tree writes nothing."""
    settle(root)
    scan(root, cache_dir=cache)
    (file,) = (cache / "scans").iterdir()
    before = file.read_bytes()
    scan(root, cache_dir=cache)
    assert file.read_bytes() == before
    (root / "pkg/a.py").write_text("a = 22\n")
    scan(root, cache_dir=cache)
    assert file.read_bytes().startswith(before)
    assert file.read_bytes()[len(before) :].count(b"run.sh") == 0


def test_torn_cache_costs_only_time(root: Path, cache: Path) -> None:
    """Cut anywhere, or with a byte changed, it gives the same tree."""
    settle(root)
    before = scan(root, cache_dir=cache)
    (file,) = (cache / "scans").iterdir()
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        file.write_bytes(whole[:at])
        assert scan(root, cache_dir=cache).hash == before.hash
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert scan(root, cache_dir=cache).hash == before.hash


def test_cached_folder_becomes_file_and_back(root: Path, cache: Path, tmp_path: Path) -> None:
    """Files, folders and links may change places between two scans."""
    settle(root)
    scan(root, cache_dir=cache)
    for script in (
        "mv pkg moved; echo x >pkg",
        "rm pkg; ln -s moved pkg",
        "rm pkg; mv moved pkg",
        "rm pkg/a.py; mkdir run.d; mv run.sh run.d",
    ):
        subprocess.run(["sh", "-ec", script], cwd=root, check=True)
        settle(root)
        warm = scan(root, cache_dir=cache)
        assert warm.manifest == scan(root, cache_dir=tmp_path / script[:8]).manifest


def test_order_is_by_path(root: Path, cache: Path) -> None:
    """A folder's files come where their paths sort, among names that begin like the folder's."""
    for name in ("pkg.txt", "pkg-x", "pkg0", "pkg/b/c", "pkg/b.c", "pkg/b-", "Z", "é/a", "é.a"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")
    paths = [entry.path for entry in scan(root, cache_dir=cache).entries]
    assert paths == sorted(paths)
    assert len(paths) == 12


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "pkg/../../outside"])
def test_link_out_of_the_tree_is_refused(root: Path, cache: Path, target: str) -> None:
    """A link that leads out is an error that names it and says where to list it."""
    (root / "bad").symlink_to(target)
    with pytest.raises(ConfigError, match="bad -> ") as caught:
        scan(root, cache_dir=cache)
    assert ".llmctlignore" in (caught.value.hint or "")


def test_ignored_bad_link_is_no_error(root: Path, cache: Path) -> None:
    """What .llmctlignore lists is not looked at."""
    (root / "bad").symlink_to("/etc/passwd")
    (root / ".llmctlignore").write_text("bad\n")
    tree = scan(root, cache_dir=cache)
    assert (tree.ignored, tree.ignored_top) == (1, ("bad",))


def test_sockets_and_pipes_are_counted(root: Path, cache: Path) -> None:
    """Neither is pushed, nor read (a pipe would block for ever)."""
    os.mkfifo(root / "pipe")
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{short}/s")
        Path(f"{short}/s").rename(root / "socket")
    tree = scan(root, cache_dir=cache)
    assert (tree.special, tree.files) == (2, 3)


def test_names_that_are_no_utf8(root: Path, cache: Path) -> None:
    """A name in any bytes survives, through the cache too."""
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9\n.txt")).write_text("x")
    settle(root)

    def name(tree: Tree) -> bytes:
        return os.fsencode(tree.entries[0].path)

    assert name(scan(root, cache_dir=cache)) == name(scan(root, cache_dir=cache)) == b"caf\xe9\n.txt"


def test_large_files_are_named(root: Path, cache: Path) -> None:
    """A file over 100 MB is listed, for a warning."""
    with (root / "weights.bin").open("wb") as file:
        file.truncate((100 << 20) + 1)
    assert scan(root, cache_dir=cache).large == (("weights.bin", (100 << 20) + 1),)


def test_no_folder(tmp_path: Path, cache: Path) -> None:
    """A missing folder is the user's error, not a traceback."""
    with pytest.raises(ConfigError, match="is not a folder"):
        scan(tmp_path / "nope", cache_dir=cache)


def test_a_state_folder_that_is_a_file_costs_only_time(tmp_path: Path) -> None:
    """`LLMCTL_STATE_DIR` naming a file leaves nothing to remember in, but the tree is scanned."""
    (tmp_path / "state").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").touch()
    assert scan(tmp_path / "tree", cache_dir=tmp_path / "state").files == 1
