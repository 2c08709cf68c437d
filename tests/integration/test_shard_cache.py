"""The cache of copies has a limit: the longest unused goes, what is in use stays, readers never notice."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmctl.errors import LlmctlError
from llmctl.storage.cache import FileCache
from llmctl.storage.corpus import reader as reading
from llmctl.storage.corpus.dataset import read_manifest
from llmctl.storage.corpus.order import SampleRef
from llmctl.storage.corpus.reader import ShardReader
from llmctl.storage.corpus.shard import shard
from llmctl.storage.eviction import note_file
from llmctl.storage.files import Store, open_store
from llmctl.storage.locks import locked
from llmctl.wire.manifests import FileEntry

SOURCE = Path(sysconfig.get_path("stdlib"), "email")
TOKENS = 30_000
SIZE = 2 * TOKENS
"""Bytes of one full shard."""


@pytest.fixture(scope="module")
def remote() -> Iterator[Store]:
    """A corpus of about ten shards in a store that is no local disk; never changed."""
    store = open_store(f"memory://{secrets.token_hex(6)}/corpus")
    shard([str(SOURCE)], store.uri, shard_tokens=TOKENS)
    yield store
    for file in store.list():
        store.delete(file.path)


@pytest.fixture
def entries(remote: Store) -> list[FileEntry]:
    """The token files of all full shards."""
    return [one.bin for one in read_manifest(remote).shards[:-1]]


def cached(folder: Path) -> set[str]:
    """Hashes of the copies in a cache."""
    return {path.name for path in (folder / "files").iterdir()}


def test_the_limit_holds_for_a_reader_of_everything(
    remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A walk through a corpus larger than the limit reads right and never keeps more than the limit."""
    monkeypatch.setattr(reading, "MAPS", 1)
    reader = ShardReader(remote.uri, tmp_path, cache_bytes=3 * SIZE)
    for number, one in enumerate(reader.manifest.shards):
        assert reader.read(SampleRef(number, 0), one.tokens) == remote.read_bytes(one.bin.path)
        sizes = [path.stat().st_size for path in (tmp_path / "files").iterdir()]
        assert sum(sizes) <= 3 * SIZE
    assert len(reader.manifest.shards) > 6
    reader.close()


def test_the_longest_unused_goes_first(remote: Store, entries: list[FileEntry], tmp_path: Path) -> None:
    """A copy that was asked for again outlives younger ones that were not."""
    cache = FileCache(tmp_path, 3 * SIZE)
    for entry in entries[:3]:
        cache.verified(remote, entry)
    for number, entry in enumerate(entries[:3]):  # the clock may not tell such moments apart
        note = note_file(tmp_path, tmp_path / "files" / entry.sha256)
        os.utime(note, (1000.0, 1000.0 + number))
    cache.verified(remote, entries[0])
    cache.verified(remote, entries[3])
    assert cached(tmp_path) == {entries[number].sha256 for number in (0, 2, 3)}
    FileCache(tmp_path, 3 * SIZE).verified(remote, entries[4])
    assert cached(tmp_path) == {entries[number].sha256 for number in (0, 3, 4)}


def test_what_is_mapped_stays(remote: Store, entries: list[FileEntry], tmp_path: Path) -> None:
    """A shard that a reader maps is not evicted though the limit is far exceeded; once let go, it is."""
    reader = ShardReader(remote.uri, tmp_path, cache_bytes=SIZE)
    view = reader.read(SampleRef(0, 0), TOKENS)
    cache = FileCache(tmp_path, SIZE)
    cache.verified(remote, entries[1])
    cache.verified(remote, entries[2])
    assert entries[0].sha256 in cached(tmp_path)
    assert entries[1].sha256 not in cached(tmp_path)
    reader.close()
    cache.verified(remote, entries[3])
    assert entries[0].sha256 in cached(tmp_path), "a view that was handed out is still a use"
    del view
    cache.verified(remote, entries[4])
    assert cached(tmp_path) == {entries[4].sha256}


def test_another_process_is_respected_until_it_dies(
    remote: Store, entries: list[FileEntry], tmp_path: Path
) -> None:
    """A copy that another process has mapped stays; killed, it holds nothing any more."""
    cache = FileCache(tmp_path, SIZE)
    path = cache.verified(remote, entries[0])
    script = (
        "import mmap, sys\nfrom llmctl.storage.eviction import hold\n"
        "stream = open(sys.argv[1], 'rb')\nhold(stream)\n"
        "kept = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)\nstream.close()\n"
        "print('mapped', flush=True)\nsys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mapped\n"
        cache.verified(remote, entries[1])
        assert path.exists()
        process.kill()
        process.wait(30)
    cache.verified(remote, entries[2])
    assert not path.exists()


def test_readers_that_evict_one_another_read_right(
    remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six readers jump about in a cache with room for two shards: every byte is right, nobody fails."""
    monkeypatch.setattr(reading, "MAPS", 1)
    whole = [remote.read_bytes(one.bin.path) for one in read_manifest(remote).shards]
    wrong: list[object] = []

    def jump(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - no secret
        reader = ShardReader(remote.uri, tmp_path, cache_bytes=2 * SIZE)
        try:
            for _ in range(40):
                number = chance.randrange(len(whole))
                if reader.read(SampleRef(number, 7), 64) != whole[number][14 : 14 + 128]:
                    wrong.append(number)
        except LlmctlError as error:
            wrong.append(error)
        finally:
            reader.close()

    threads = [threading.Thread(target=jump, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    assert sum(path.stat().st_size for path in (tmp_path / "files").iterdir()) <= 8 * SIZE


def test_what_a_killed_download_left_goes(remote: Store, entries: list[FileEntry], tmp_path: Path) -> None:
    """An unfinished file is removed at the next download, unless someone is at work on it."""
    files = tmp_path / "files"
    files.mkdir()
    dead = files / f".{entries[5].sha256}.0a1b2c3d.part"
    alive = files / f".{entries[6].sha256}.0a1b2c3d.part"
    dead.write_bytes(b"half")
    alive.write_bytes(b"half")
    with locked(tmp_path / "locks" / entries[6].sha256[:32], 0.0):
        FileCache(tmp_path).verified(remote, entries[0])
    assert not dead.exists()
    assert alive.exists()


def test_without_a_limit_half_of_the_disk_is_used(
    remote: Store, entries: list[FileEntry], tmp_path: Path
) -> None:
    """The default keeps everything where the disk has room for far more."""
    cache = FileCache(tmp_path)
    for entry in entries:
        cache.verified(remote, entry)
    assert cached(tmp_path) == {entry.sha256 for entry in entries}
