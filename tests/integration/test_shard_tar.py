"""Tar data sets of real images and sounds: whole samples, the same bytes, every sample once per epoch."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import struct
import tarfile
import wave
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmctl.errors import ConfigError, IntegrityError, NotFoundError
from llmctl.storage.corpus.dataset import read_manifest
from llmctl.storage.corpus.journal import PROGRESS
from llmctl.storage.corpus.progress import Progress
from llmctl.storage.corpus.shard import shard
from llmctl.storage.corpus.tarmake import shard_tars
from llmctl.storage.corpus.tarset import TarSample, TarSet
from llmctl.storage.files import open_store

IMAGES = 60


class Interrupted(BaseException):
    """Ends a run from inside its progress callback, as Ctrl-C would."""


def png(seed: int, side: int = 24) -> bytes:
    """A real grey PNG of pseudo-random pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = b"".join(b"\0" + hashlib.shake_128(f"{seed}:{row}".encode()).digest(side) for row in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def wav(seed: int) -> bytes:
    """A real WAV of pseudo-random samples."""
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(hashlib.shake_128(str(seed).encode()).digest(2000 + 2 * seed))
    return out.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in two folders, each with a class, every third with a mask and a json beside it."""
    root = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        folder = root / ("cats" if number % 2 else "dögs and more")
        folder.mkdir(exist_ok=True)
        (folder / f"{number:03d}.png").write_bytes(png(number))
        (folder / f"{number:03d}.cls").write_text(str(number % 2))
        if number % 3 == 0:
            (folder / f"{number:03d}.seg.png").write_bytes(png(1000 + number))
            (folder / f"{number:03d}.json").write_text(json.dumps({"n": number}))
    return root


@pytest.fixture(scope="module")
def tars(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their data set in small tars, never changed."""
    dest = tmp_path_factory.mktemp("tars") / "set"
    shard_tars([str(images)], str(dest), shard_bytes=9_000)
    return dest


@pytest.fixture
def remote(tars: Path) -> Iterator[str]:
    """A copy of it in a store that is no local disk."""
    uri = f"memory://{secrets.token_hex(6)}/set"
    store = open_store(uri)
    for path in tars.iterdir():
        store.put_file(path, path.name)
    yield uri
    for file in store.list():
        store.delete(file.path)


def contents(dest: str) -> dict[str, bytes]:
    """All visible files of a store."""
    store = open_store(dest)
    return {file.path: store.read_bytes(file.path) for file in store.list()}


def on_disk(images: Path) -> dict[str, dict[str, bytes]]:
    """The samples by the definition: path up to the first dot of the name."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(images.rglob("*.*")):
        stem, extension = path.name.split(".", 1)
        key = str(path.parent.relative_to(images) / stem)
        found.setdefault(key, {})[extension] = path.read_bytes()
    return found


def test_every_sample_is_there_whole(images: Path, tars: Path) -> None:
    """Reading all tars gives every file of every sample, byte by byte, and the manifest counts them."""
    made = TarSet(str(tars))
    samples = list(made.samples())
    assert {sample.key: sample.files for sample in samples} == on_disk(images)
    assert len(samples) == len(made) == IMAGES
    assert len(made.manifest.shards) > 4
    assert made.manifest.extensions == {"cls": 60, "json": 20, "png": 60, "seg.png": 20}


def test_the_files_of_a_sample_lie_side_by_side(tars: Path) -> None:
    """Plain tarfile reads the tars; a key never comes back once another one has begun, in any tar."""
    seen: list[str] = []
    for path in sorted(tars.glob("*.tar")):
        with tarfile.open(path) as tar:
            assert sum(member.size for member in tar) <= 9_000
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                key = member.name.split(".", 1)[0]
                if not seen or seen[-1] != key:
                    seen.append(key)
    assert len(seen) == len(set(seen)) == IMAGES


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")
def test_webdataset_reads_them(images: Path, tars: Path) -> None:
    """The library whose form this is finds the same samples."""
    webdataset = pytest.importorskip("webdataset")
    paths = [str(path) for path in sorted(tars.glob("*.tar"))]
    found = {
        sample["__key__"]: {name: data for name, data in sample.items() if not name.startswith("__")}
        for sample in webdataset.WebDataset(paths, shardshuffle=False)
    }
    assert found == on_disk(images)


def test_audio_and_text(tmp_path: Path) -> None:
    """Sounds with their transcripts from two folders at once, into memory and back."""
    for number in range(12):
        folder = tmp_path / f"speaker-{number % 2}" / f"take-{number}"
        folder.mkdir(parents=True)
        (folder / "a.b.wav").write_bytes(wav(number))
        (folder / "a.txt").write_text(f"words {number}")
    dest = f"memory://{secrets.token_hex(6)}/sounds"
    shard_tars([str(tmp_path)], dest, shard_bytes=1 << 20)
    samples = list(TarSet(dest, tmp_path / "cache").samples())
    assert len(samples) == 12
    for sample in samples:
        number = int(sample.files["txt"].split()[1])
        assert sample.files["b.wav"] == wav(number)
        assert sample.key == f"speaker-{number % 2}/take-{number}/a"


def test_the_same_input_gives_the_same_bytes(images: Path, tars: Path, tmp_path: Path) -> None:
    """Disk or memory, touched files or not: the same tars and manifest."""
    copy = tmp_path / "copy"
    for path in images.rglob("*.*"):
        target = copy / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        target.chmod(0o600)
    dest = f"memory://{secrets.token_hex(6)}/set"
    shard_tars([str(copy)], dest, shard_bytes=9_000)
    one, other = contents(str(tars)), contents(dest)
    one.pop(".input.json")
    other.pop(".input.json")  # it stands for the files themselves
    assert one == other


def test_stopping_anywhere_ends_in_the_same_bytes(images: Path, tars: Path, tmp_path: Path) -> None:
    """Stopped after every eleventh sample: no data set is visible before the end, whole tars are kept."""
    dest = str(tmp_path / "out")
    stops = 0
    while True:
        told: list[Progress] = []

        def tell(progress: Progress, told: list[Progress] = told) -> None:
            told.append(progress)
            if len(told) == 11:
                raise Interrupted

        try:
            shard_tars([str(images)], dest, shard_bytes=9_000, progress=tell)
            break
        except Interrupted:
            stops += 1
            assert stops < 20, "no progress between two stops"
        with pytest.raises(NotFoundError):
            TarSet(dest)
        assert (tmp_path / "out" / PROGRESS).exists()
    assert stops > 3
    assert contents(dest) == contents(str(tars))


def test_the_same_command_again_does_nothing(images: Path, tars: Path) -> None:
    """A finished data set is recognised: nothing is written."""
    before = {path.name: path.stat().st_mtime_ns for path in tars.iterdir()}
    shard_tars([str(images)], str(tars), shard_bytes=9_000)
    assert {path.name: path.stat().st_mtime_ns for path in tars.iterdir()} == before


@pytest.mark.parametrize("world", [1, 2, 3, 7, 61])
def test_each_sample_is_one_ranks(remote: str, tmp_path: Path, world: int) -> None:
    """The ranks' parts are disjoint and complete and differ by one at most, for any world, in any epoch."""
    made = TarSet(remote, tmp_path / "cache")
    for epoch in (0, 1):
        parts = [list(made.samples(rank, world, seed=3, epoch=epoch)) for rank in range(world)]
        keys = Counter(sample.key for part in parts for sample in part)
        assert len(keys) == IMAGES
        assert set(keys.values()) == {1}
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_seed_gives_each_epoch_its_own_order(tars: Path) -> None:
    """Epochs differ, the same epoch is the same again, and without a seed the order is that of the tars."""
    made = TarSet(str(tars))

    def keys(epoch: int, seed: int | None = 5) -> list[str]:
        return [sample.key for sample in made.samples(seed=seed, epoch=epoch)]

    assert keys(0) == keys(0) != keys(1)
    assert keys(0, None) == keys(1, None) == sorted(keys(0))


def test_a_part_of_a_tar_is_read(tars: Path) -> None:
    """`read` gives exactly the asked-for samples of one tar, with all their files."""
    made = TarSet(str(tars))
    whole: list[TarSample] = list(made.read(1))
    assert len(whole) == made.manifest.shards[1].samples > 3
    assert list(made.read(1, 1, 3)) == whole[1:3]
    assert list(made.read(1, 2)) == whole[2:]


def test_a_damaged_tar_is_never_handed_out(images: Path, tmp_path: Path) -> None:
    """One wrong bit in a picture is an error that names the file, not a wrong picture."""
    dest = tmp_path / "set"
    shard_tars([str(images)], str(dest), shard_bytes=9_000)
    path = dest / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"shard-000001\.tar: expected sha256"):
        list(TarSet(str(dest)).read(1))


def test_formats_are_not_taken_for_one_another(images: Path, tars: Path, tmp_path: Path) -> None:
    """A reader of tokens refuses tars in words, a reader of tars tokens, and neither replaces the other."""
    with pytest.raises(ConfigError, match="holds tar shards, token shards are needed"):
        read_manifest(open_store(str(tars)))
    tokens = str(tmp_path / "tokens")
    shard([str(images / "cats")], tokens, shard_tokens=1000)
    with pytest.raises(ConfigError, match="holds token shards"):
        TarSet(tokens)
    with pytest.raises(ConfigError, match="already holds a data set"):
        shard_tars([str(images)], tokens)
    shard_tars([str(images)], tokens, overwrite=True)
    assert not list(Path(tokens).glob("*.bin"))
    assert len(TarSet(tokens)) == IMAGES


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    """Two sources with the same path below them: an error that names both, nothing is left out silently."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
    with pytest.raises(ConfigError, match=r"one/a\.txt and .*two/a\.txt would both be a\.txt"):
        shard_tars([str(tmp_path / "one"), str(tmp_path / "two")], str(tmp_path / "dest"))


def test_large_files_stream(tmp_path: Path) -> None:
    """A file above the read-ahead limit, larger than a tar is meant to be, arrives whole, alone."""
    source = tmp_path / "videos"
    source.mkdir()
    (source / "a.mp4").write_bytes(secrets.token_bytes(3 << 20))
    (source / "b.mp4").write_bytes(b"small")
    shard_tars([str(source)], str(tmp_path / "dest"), shard_bytes=1 << 20)
    made = TarSet(str(tmp_path / "dest"))
    assert [shard.samples for shard in made.manifest.shards] == [1, 1]
    assert next(made.read(0)).files["mp4"] == (source / "a.mp4").read_bytes()
