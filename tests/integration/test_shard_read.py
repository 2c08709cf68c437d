"""Reading a corpus: the right tokens, every byte checked once, shared by many readers, ahead of training."""

from __future__ import annotations

import json
import os
import queue
import secrets
import subprocess
import sys
import sysconfig
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from llmctl.errors import ConfigError, DeadlineError, IntegrityError, LlmctlError, NotFoundError
from llmctl.storage import cache, hashing
from llmctl.storage.cache import FileCache
from llmctl.storage.corpus.loader import SampleLoader, StepBatch
from llmctl.storage.corpus.order import SampleOrder, SampleRef, ShardRef
from llmctl.storage.corpus.reader import ShardReader
from llmctl.storage.corpus.shard import shard
from llmctl.storage.files import open_store
from llmctl.storage.locks import locked
from llmctl.wire.manifests import FileEntry

SOURCE = Path(sysconfig.get_path("stdlib"), "email")
LENGTH = 64


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of real text on disk, never changed."""
    path = tmp_path_factory.mktemp("corpus") / "shards"
    shard([str(SOURCE)], str(path), shard_tokens=30_000)
    return path


@pytest.fixture
def remote(local: Path) -> Iterator[str]:
    """A copy of it in a store that is no local disk."""
    uri = f"memory://{secrets.token_hex(6)}/corpus"
    store = open_store(uri)
    for path in local.iterdir():
        store.put_file(path, path.name)
    yield uri
    for file in store.list():
        store.delete(file.path)


@pytest.fixture(params=["disk", "memory"])
def uri(request: pytest.FixtureRequest, local: Path, remote: str) -> str:
    """The corpus where it was made, or its copy."""
    return str(local) if request.param == "disk" else remote


@pytest.fixture
def copied(tmp_path: Path, local: Path) -> Path:
    """A copy of the corpus that a test may damage."""
    path = tmp_path / "copied"
    open_store(str(path))
    for file in local.iterdir():
        open_store(str(path)).put_file(file, file.name)
    return path


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll, at most 30 seconds."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "not within 30 s"
        time.sleep(0.01)


def flip(path: Path, at: int = 1000) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_sample_is_the_tokens_at_its_place(uri: str, local: Path, tmp_path: Path) -> None:
    """read gives exactly the bytes of the file at shard and start, up to the very end of a shard."""
    reader = ShardReader(uri, tmp_path / "cache")
    for number, entry in enumerate(reader.manifest.shards):
        data = (local / entry.bin.path).read_bytes()
        for start in (0, 1, 777, entry.tokens - LENGTH):
            view = reader.read(SampleRef(number, start), LENGTH)
            assert view == data[2 * start : 2 * (start + LENGTH)]
            assert view.readonly
    with pytest.raises(IntegrityError, match="none at"):
        reader.read(SampleRef(0, reader.manifest.shards[0].tokens - LENGTH + 1), LENGTH)
    reader.close()


def test_a_flipped_byte_is_never_handed_out(copied: Path, tmp_path: Path) -> None:
    """One wrong bit: IntegrityError with file, expected and found hash; other shards stay readable."""
    reader = ShardReader(str(copied), tmp_path / "cache")
    flip(copied / "shard-00001.bin")
    wrong = hashing.file_entry(copied / "shard-00001.bin", "x").sha256
    right = reader.manifest.shards[1].bin.sha256
    with pytest.raises(IntegrityError, match=rf"shard-00001\.bin: expected sha256 {right}, found {wrong}"):
        reader.read(SampleRef(1, 0), LENGTH)
    assert len(reader.read(SampleRef(0, 0), LENGTH)) == 2 * LENGTH
    (copied / "shard-00002.bin").write_bytes(b"short")
    with pytest.raises(IntegrityError, match=r"shard-00002\.bin: expected 60000 bytes, found 5"):
        reader.read(SampleRef(2, 0), LENGTH)
    (copied / "shard-00003.bin").unlink()
    with pytest.raises(NotFoundError, match=r"shard-00003\.bin"):
        reader.read(SampleRef(3, 0), LENGTH)


def test_a_damaged_remote_shard_leaves_nothing_in_the_cache(copied: Path, tmp_path: Path) -> None:
    """Bytes that arrive wrong are refused and not kept; once the store has the right ones, reading works."""
    store = open_store(f"memory://{secrets.token_hex(6)}/corpus")
    good = (copied / "shard-00000.bin").read_bytes()
    flip(copied / "shard-00000.bin")
    for path in copied.iterdir():
        store.put_file(path, path.name)
    reader = ShardReader(store.uri, tmp_path / "cache")
    with pytest.raises(IntegrityError, match=r"memory://.*shard-00000\.bin: expected sha256"):
        reader.read(SampleRef(0, 0), LENGTH)
    assert [path for path in (tmp_path / "cache" / "files").rglob("*") if path.is_file()] == []
    store.write_bytes("shard-00000.bin", good)
    assert reader.read(SampleRef(0, 0), LENGTH) == good[: 2 * LENGTH]


def test_a_rotten_cached_copy_is_fetched_again(remote: str, local: Path, tmp_path: Path) -> None:
    """A copy that rotted on this disk is noticed by the next process and replaced from the store."""
    ShardReader(remote, tmp_path / "cache").read(SampleRef(0, 0), LENGTH)
    (copy,) = (tmp_path / "cache" / "files").iterdir()
    flip(copy)
    view = ShardReader(remote, tmp_path / "cache").read(SampleRef(0, 0), 30_000)
    assert view == (local / "shard-00000.bin").read_bytes()


def test_a_restart_does_not_hash_again(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked once is remembered in the cache folder; a changed file is checked again."""
    hashed: list[Path] = []
    real = cache.file_entry

    def counting(path: Path, name: str) -> FileEntry:
        hashed.append(path)
        return real(path, name)

    ShardReader(uri, tmp_path / "cache").read(SampleRef(0, 0), LENGTH)
    monkeypatch.setattr(cache, "file_entry", counting)
    reader = ShardReader(uri, tmp_path / "cache")
    reader.read(SampleRef(0, 0), LENGTH)
    assert hashed == []
    os.utime(FileCache(tmp_path / "cache").place(open_store(uri), reader.manifest.shards[0].bin))
    ShardReader(uri, tmp_path / "cache").read(SampleRef(0, 0), LENGTH)
    assert len(hashed) == 1


def test_a_changed_file_is_noticed_after_a_restart(copied: Path, tmp_path: Path) -> None:
    """The memory of a check does not cover a file that was changed since."""
    ShardReader(str(copied), tmp_path / "cache").read(SampleRef(0, 0), LENGTH)
    flip(copied / "shard-00000.bin")
    with pytest.raises(IntegrityError, match="expected sha256"):
        ShardReader(str(copied), tmp_path / "cache").read(SampleRef(0, 0), LENGTH)


def test_many_readers_share_one_copy(uri: str, tmp_path: Path) -> None:
    """Eight readers of one host at once: all read right, one copy per shard, nothing unfinished is left."""
    results: queue.Queue[bytes | LlmctlError] = queue.Queue()
    count = len(ShardReader(uri, tmp_path / "cache").manifest.shards)

    def read() -> None:
        reader = ShardReader(uri, tmp_path / "cache")
        try:
            results.put(b"".join(reader.read(SampleRef(i, 5), LENGTH) for i in range(count)))
        except LlmctlError as error:
            results.put(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    first = results.get(timeout=1)
    assert all(results.get(timeout=1) == first for _ in range(7))
    files = list((tmp_path / "cache" / "files").rglob("*")) if uri.startswith("memory") else []
    assert len(files) == (count if uri.startswith("memory") else 0)
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_prefetched_shards_are_there(uri: str, tmp_path: Path) -> None:
    """After prefetch has had its time, reading needs the store no more."""
    reader = ShardReader(uri, tmp_path / "cache")
    reader.prefetch([ShardRef(0), ShardRef(1)])
    wait_until(lambda: len(list((tmp_path / "cache" / "checked").glob("[0-9a-f]*"))) >= 2)
    if uri.startswith("memory"):
        for file in open_store(uri).list():
            open_store(uri).delete(file.path)
    assert len(reader.read(SampleRef(1, 0), LENGTH)) == 2 * LENGTH
    reader.close()


def test_what_is_no_corpus_says_so(tmp_path: Path) -> None:
    """No manifest, a foreign manifest, a newer one, a remote one without a cache folder: one line each."""
    with pytest.raises(NotFoundError, match="holds no data set") as caught:
        ShardReader(str(tmp_path))
    assert "llmctl data shard" in str(caught.value.hint)
    for text in ("", "[]", "{}", '{"schema": 99}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(IntegrityError):
            ShardReader(str(tmp_path))
    with pytest.raises(ConfigError, match="needs a cache folder"):
        ShardReader("memory://nowhere")


def test_a_lock_is_waited_for_and_dies_with_its_holder(tmp_path: Path) -> None:
    """A held lock ends in a DeadlineError; killed holders hold nothing."""
    path = tmp_path / "lock"
    script = f"""
import sys
from pathlib import Path
from llmctl.storage.locks import locked
with locked(Path({str(path)!r}), 1):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DeadlineError, match="locked by another process"), locked(path, 0.1):
            pass
        holder.kill()
        holder.wait(10)
    with locked(path, 5):
        pass


# The loader


def rows(batch: StepBatch) -> list[bytes]:
    """The samples of a batch."""
    size = 2 * (LENGTH + 1)
    assert len(batch.tokens) == size * len(batch.refs)
    return [bytes(batch.tokens[i : i + size]) for i in range(0, len(batch.tokens), size)]


def load(
    uri: str, cache_dir: Path, *, steps: int, world: int, start: int = 0, batch: int = 10
) -> list[list[bytes]]:
    """The global batches of some steps, joined from the shares of all ranks."""
    loaders = []
    for rank in range(world):
        reader = ShardReader(uri, cache_dir)
        order = SampleOrder(reader.manifest, LENGTH, seed=5)
        loaders.append(
            SampleLoader(reader, order, global_batch=batch, rank=rank, world=world, start_step=start)
        )
    result = []
    for step in range(start, start + steps):
        shares = [next(loader) for loader in loaders]
        assert [share.step for share in shares] == [step] * world
        result.append([row for share in shares for row in rows(share)])
    for loader in loaders:
        loader.close()
    return result


def test_batches_do_not_depend_on_ranks_or_on_the_start(uri: str, tmp_path: Path) -> None:
    """1, 3 and 13 ranks (some without a sample) load the same steps; a start at step 20 continues them."""
    whole = load(uri, tmp_path / "cache", steps=30, world=1)
    assert load(uri, tmp_path / "cache", steps=30, world=3) == whole
    assert load(uri, tmp_path / "cache", steps=5, world=13) == whole[:5]
    assert load(uri, tmp_path / "cache", steps=10, world=2, start=20) == whole[20:]


def test_a_batch_holds_what_its_refs_say(local: Path) -> None:
    """Rows are the tokens at the order's places, across the end of an epoch too."""
    reader = ShardReader(str(local))
    order = SampleOrder(reader.manifest, LENGTH, seed=1)
    with SampleLoader(reader, order, global_batch=900, rank=1, world=2) as loader:
        for batch in islice(loader, 2 + order.samples_per_epoch // 900):
            assert batch.refs == order.samples(batch.step, 900, 450, 450)
            for ref, row in list(zip(batch.refs, rows(batch), strict=True))[::50]:
                tokens = array("H", (local / f"shard-{ref.shard:05d}.bin").read_bytes())
                assert array("H", row) == tokens[ref.start : ref.start + LENGTH + 1]


def test_an_error_surfaces_at_its_own_step(copied: Path) -> None:
    """Batches before the damaged shard are delivered; the one that needs it raises; then it is over."""
    reader = ShardReader(str(copied))
    order = SampleOrder(reader.manifest, LENGTH, seed=2)
    bad = order.sample(order.samples_per_epoch - 1).shard
    flip(copied / f"shard-{bad:05d}.bin")
    expected = next(
        step for step in range(10**6) if any(ref.shard == bad for ref in order.samples(step, 7, 0, 7))
    )
    loader = SampleLoader(reader, order, global_batch=7, rank=0, world=1)
    for step in range(expected):
        assert next(loader).step == step
    with pytest.raises(IntegrityError, match=f"shard-{bad:05d}"):
        next(loader)
    with pytest.raises(StopIteration):
        next(loader)
    assert expected > 0


def test_reading_ahead_is_bounded_and_ends(local: Path) -> None:
    """A loader that nobody reads from stays at its depth, and close ends its thread at once."""
    reader = ShardReader(str(local))
    loader = SampleLoader(
        reader, SampleOrder(reader.manifest, LENGTH, 0), global_batch=4, rank=0, world=1, depth=3
    )
    wait_until(loader._queue.full)
    assert loader._queue.qsize() == 3
    assert next(loader).step == 0
    assert loader.wait_s >= 0
    loader.close()
    assert not loader._thread.is_alive()
    with pytest.raises(StopIteration):
        next(loader)


def test_reading_a_local_corpus_needs_only_the_standard_library(local: Path) -> None:
    """A host without numpy, fsspec or tokenizers can read, order, load and decode."""
    script = f"""
import json, sys
from llmctl.storage.corpus.loader import SampleLoader
from llmctl.storage.corpus.order import SampleOrder
from llmctl.storage.corpus.reader import ShardReader
from llmctl.storage.corpus.tokenizer import open_tokenizer
reader = ShardReader({str(local)!r})
loader = SampleLoader(reader, SampleOrder(reader.manifest, 64, 0), global_batch=2, rank=0, world=1)
batch = next(loader)
loader.close()
assert open_tokenizer("bytes").decode(memoryview(batch.tokens).cast("H")[:65])
heavy = {{"numpy", "fsspec", "tokenizers", "pyarrow", "zstandard", "torch"}}
print(json.dumps(sorted(heavy & set(sys.modules))))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == []
