"""Many files at once, in and out of every store: nothing twice, nothing torn, failures told one by one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmctl.errors import ConfigError, IntegrityError, NotFoundError, TransferError
from llmctl.storage import remote, streams
from llmctl.storage.files import Store, open_store
from llmctl.storage.hashing import file_entry
from llmctl.storage.transfer import Moved, Pair, copy_in, copy_out
from tests.contract.stores import store_uri
from tests.contract.test_store import KINDS

COUNT = 12


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty store."""
    opened = open_store(store_uri(request, request.param, tmp_path, monkeypatch))
    yield opened
    for file in opened.list():
        opened.delete(file.path)


@pytest.fixture
def files(tmp_path: Path) -> list[Pair]:
    """Local files of several sizes, one of them empty, and where they are to go."""
    pairs = []
    for number in range(COUNT):
        local = tmp_path / "in" / f"{number:02}.bin"
        local.parent.mkdir(exist_ok=True)
        local.write_bytes(secrets.token_bytes(number * 50_000))
        pairs.append((local, f"corpus/{number:02}.bin"))
    return pairs


def test_a_rerun_sends_only_what_is_missing(store: Store, files: list[Pair]) -> None:
    """All files arrive with their fingerprints; then only a changed, a new and a lost one travel again."""
    seen: list[Moved] = []
    first = copy_in(store, files[:-1], workers=4, progress=seen.append)
    assert first.files == tuple(file_entry(local, path) for local, path in files[:-1])
    assert len(first.moved) == COUNT - 1
    assert [moved.files for moved in seen] == list(range(1, COUNT))
    assert seen[-1].bytes == first.bytes == sum(entry.size for entry in first.files)
    files[3][0].write_bytes(b"another")
    store.delete(files[5][1])
    again = copy_in(store, files, known={entry.path: entry for entry in first.files})
    assert again.moved == (files[3][1], files[5][1], files[-1][1])
    assert len(again.skipped) == COUNT - 3
    assert again.files == tuple(file_entry(local, path) for local, path in files)
    for local, path in files:
        assert store.read_bytes(path) == local.read_bytes()


def test_what_comes_out_is_what_the_manifest_says(store: Store, files: list[Pair], tmp_path: Path) -> None:
    """Files come out checked; those that are here already stay; a wrong one is refused, the others come."""
    known = {entry.path: entry for entry in copy_in(store, files).files}
    out = [(tmp_path / "out" / path, path) for _, path in files]
    out[1][0].parent.mkdir(parents=True)
    out[1][0].write_bytes(files[1][0].read_bytes())
    store.write_bytes(files[2][1], b"x" * known[files[2][1]].size)
    with pytest.raises(IntegrityError, match=r"corpus/02\.bin: expected sha256"):
        copy_out(store, out, known=known)
    assert not out[2][0].exists()
    assert sorted(path.name for path in out[0][0].parent.iterdir()) == sorted(
        local.name for local, path in files if path != files[2][1]
    )
    store.put_file(*files[2])
    done = copy_out(store, out, known=known)
    assert done.moved == (files[2][1],)
    assert [local.read_bytes() for local, _ in out] == [local.read_bytes() for local, _ in files]


def test_one_bad_file_keeps_no_other_from_going(store: Store, files: list[Pair], tmp_path: Path) -> None:
    """A file that is not there is named, with its kind of error; all others are sent."""
    pairs = [*files, (tmp_path / "absent", "corpus/absent")]
    with pytest.raises(NotFoundError, match="absent"):
        copy_in(store, pairs)
    assert [file.path for file in store.list()] == [path for _, path in files]


def test_a_large_file_comes_in_ranges(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched by several ranges at once, a file has every byte in its place, and the right fingerprint."""
    monkeypatch.setattr(remote, "RANGED", 1_000_000)
    monkeypatch.setattr(streams, "_RANGE", 1_300_000)
    (tmp_path / "a").write_bytes(secrets.token_bytes(9_000_001))
    sent = store.put_file(tmp_path / "a", "a")
    assert store.get_file("a", tmp_path / "b") == sent == file_entry(tmp_path / "b", "a")
    store.write_bytes("a", secrets.token_bytes(9_000_001))
    with pytest.raises(IntegrityError):
        store.get_file("a", tmp_path / "b", expected=sent)
    assert file_entry(tmp_path / "b", "a") == sent


def test_a_name_twice_is_a_mistake(tmp_path: Path) -> None:
    """Two files for one place would be a race: refused."""
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(ConfigError, match="named twice"):
        copy_in(open_store(str(tmp_path / "store")), [(tmp_path / "a", "x"), (tmp_path / "a", "x")])


def test_many_failures_are_one_error(tmp_path: Path, files: list[Pair]) -> None:
    """How many failed of how many, and why the first ones did."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "corpus").write_bytes(b"a file where a folder should be")
    with pytest.raises(
        TransferError, match=f"{COUNT} of {COUNT} files failed: .*corpus.*; and {COUNT - 3} more"
    ):
        copy_in(open_store(str(tmp_path / "store")), files)
