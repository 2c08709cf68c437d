"""One suite for every store: what the rest of llmctl may rely on, on a disk and in memory."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmctl.errors import ConfigError, IntegrityError, NotFoundError
from llmctl.storage.files import Store, open_store
from llmctl.storage.hashing import file_entry, verify
from llmctl.wire.manifests import FileEntry
from tests.contract.stores import store_uri

ODD_NAMES = ["a b.txt", "ü/ñ.txt", "what?.txt", "#1.txt", "100%.txt", "a/b/c/d.txt", "-x", "a&b=c.txt"]


REAL = ["hdfs", "webhdfs", "s3-http", "s3-https", "cephfs"]
KINDS = ["path", "file", "memory", *(pytest.param(kind, marks=pytest.mark.stores) for kind in REAL)]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty store."""
    opened = open_store(store_uri(request, request.param, tmp_path, monkeypatch))
    yield opened
    for file in opened.list():
        opened.delete(file.path)


def test_what_was_written_is_read(store: Store) -> None:
    """Bytes come back as they were, also none and all of them."""
    for data in (b"", b"x", bytes(range(256)) * 1000):
        store.write_bytes("folder/file", data)
        assert store.read_bytes("folder/file") == data
        assert store.size("folder/file") == len(data)
        with store.open_read("folder/file") as stream:
            assert stream.read() == data


def test_a_shorter_file_replaces_a_longer_one(store: Store) -> None:
    """Replacing leaves nothing of the old content."""
    store.write_bytes("a", b"long content")
    store.write_bytes("a", b"new")
    assert store.read_bytes("a") == b"new"


def test_files_travel_in_and_out_whole(store: Store, tmp_path: Path) -> None:
    """put_file and get_file carry every byte and leave no unfinished file behind."""
    source, back = tmp_path / "in.bin", tmp_path / "deep" / "out.bin"
    source.write_bytes(secrets.token_bytes(5_000_000))
    store.put_file(source, "d/file.bin")
    store.get_file("d/file.bin", back)
    assert back.read_bytes() == source.read_bytes()
    assert [path.name for path in back.parent.iterdir()] == ["out.bin"]
    assert [file.path for file in store.list()] == ["d/file.bin"]


def test_a_stream_can_be_read_in_parts(store: Store) -> None:
    """open_read seeks, reads lines and stops at the end."""
    store.write_bytes("a", b"one\ntwo\nthree")
    with store.open_read("a") as stream:
        stream.seek(4)
        assert stream.readline() == b"two\n"
        assert stream.read() == b"three"
        assert stream.read() == b""
        stream.seek(0)
        assert list(stream) == [b"one\n", b"two\n", b"three"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_survive(store: Store, name: str) -> None:
    """A name means itself: it is never cut, decoded or expanded."""
    store.write_bytes(name, b"here")
    assert store.read_bytes(name) == b"here"
    assert [file.path for file in store.list()] == [name]


def test_list_is_sorted_complete_and_relative(store: Store) -> None:
    """list gives all files below a folder, by path, with sizes; a missing folder is an empty one."""
    for name in ("b/2", "a", "b/1", "bb", "b/c/3"):
        store.write_bytes(name, name.encode())
    assert [(file.path, file.size) for file in store.list()] == [
        ("a", 1),
        ("b/1", 3),
        ("b/2", 3),
        ("b/c/3", 5),
        ("bb", 2),
    ]
    assert [file.path for file in store.list("b")] == ["b/1", "b/2", "b/c/3"]
    assert store.list("nowhere") == []


def test_a_rewritten_file_has_another_version(store: Store) -> None:
    """version tells that a file was replaced by one of the same size."""
    store.write_bytes("a", b"1")
    before = store.info("a").version
    store.write_bytes("a", b"2")
    assert before
    assert store.info("a").version != before


def test_unfinished_files_are_hidden(store: Store) -> None:
    """What a killed writer left is not listed."""
    store.write_bytes(".a.12ab.part", b"half")
    assert store.list() == []
    store.delete(".a.12ab.part")


def test_what_is_missing_says_so(store: Store, tmp_path: Path) -> None:
    """Every way of reading a missing file names it in a NotFoundError; a folder is not a file."""
    store.write_bytes("folder/file", b"")
    for path in ("missing", "folder/missing", "folder"):
        assert not store.exists(path)
    for read in (
        lambda: store.read_bytes("missing"),
        lambda: store.open_read("missing"),
        lambda: store.size("missing"),
        lambda: store.get_file("missing", tmp_path / "out"),
        lambda: store.rename("missing", "other"),
    ):
        with pytest.raises(NotFoundError, match="missing"):
            read()
    assert not (tmp_path / "out").exists()


def test_rename_moves_files_and_folders(store: Store) -> None:
    """After rename the old name is gone and the new one whole, a file there replaced."""
    store.write_bytes("a", b"new")
    store.write_bytes("b", b"old")
    store.rename("a", "b")
    assert [file.path for file in store.list()] == ["b"]
    assert store.read_bytes("b") == b"new"
    store.write_bytes("tmp/x", b"1")
    store.write_bytes("tmp/d/y", b"2")
    store.rename("tmp", "final/step")
    assert [file.path for file in store.list("final")] == ["final/step/d/y", "final/step/x"]
    assert store.list("tmp") == []


def test_delete_takes_a_tree_and_nothing_else(store: Store) -> None:
    """delete removes what it names, not its namesakes, and may be repeated."""
    for name in ("a/1", "a/b/2", "ab", "c"):
        store.write_bytes(name, b"")
    store.delete("a")
    store.delete("a")
    store.delete("c")
    assert [file.path for file in store.list()] == ["ab"]


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/.", "a\0b"])
def test_no_path_leaves_the_store(store: Store, path: str) -> None:
    """A path that is not plainly below the root is refused by everything that takes one."""
    for use in (store.read_bytes, store.exists, store.delete, lambda name: store.write_bytes(name, b"")):
        with pytest.raises(ConfigError):
            use(path)


def test_readers_see_old_or_new_but_nothing_between(store: Store) -> None:
    """While a file is replaced again and again, a reader finds it whole every time."""
    size = 300_000
    store.write_bytes("a", b"0" * size)
    stop = threading.Event()

    def write() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            store.write_bytes("a", str(turn % 10).encode() * size)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            data = store.read_bytes("a")
            assert len(data) == size
            assert len(set(data)) == 1
    finally:
        stop.set()
        writer.join(30)


def test_verify_reads_every_byte(store: Store, tmp_path: Path) -> None:
    """verify passes the right file, and names file, expected and found hash of one with a flipped bit."""
    local = tmp_path / "x"
    local.write_bytes(b"a" * 3_000_000)
    store.put_file(local, "x")
    entry = file_entry(local, "x")
    verify(store, entry)
    store.write_bytes("x", b"a" * 2_999_999 + b"c")
    told = rf"x: expected sha256 {entry.sha256}, found [0-9a-f]{{64}}; damaged within bytes 2097152-2999999$"
    with pytest.raises(IntegrityError, match=told):
        verify(store, entry)
    with pytest.raises(IntegrityError, match="expected 2999999 bytes, found 3000000"):
        verify(store, FileEntry(path="x", size=2_999_999, sha256=entry.sha256))


def test_a_pattern_in_a_name_is_only_a_name(store: Store) -> None:
    """Renaming and deleting `a?` touches neither `ab` nor what lies in it, as a file or as a folder."""
    for name in ("a?/x", "ab/x", "c*", "cd"):
        store.write_bytes(name, name.encode())
    store.rename("a?", "e?")
    assert [file.path for file in store.list()] == ["ab/x", "c*", "cd", "e?/x"]
    store.delete("e?")
    store.delete("c*")
    assert [file.path for file in store.list()] == ["ab/x", "cd"]


def test_where_is_a_full_name(store: Store) -> None:
    """Messages name a file so that a person finds it."""
    assert store.where("a/b").startswith(store.uri)
    assert store.where("a/b").endswith("/a/b")
