"""`llmctl data ls | verify | audit`: what is right is told so, and every wrong byte or meaning is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.storage.corpus.audit import audit
from llmctl.storage.corpus.dataset import read_dataset
from llmctl.storage.corpus.shard import shard
from llmctl.storage.corpus.tarmake import shard_tars
from llmctl.storage.files import open_store
from llmctl.storage.findings import damages
from llmctl.storage.hashing import file_entry
from llmctl.wire import codec
from llmctl.wire.manifests import FileEntry, ShardManifest

SOURCE = Path(sysconfig.get_path("stdlib"), "email")
TOKENS = 1_100_000
"""Per shard: two MiB and a bit, so that a damaged MiB can be told from the others."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a token set of two shards, and a tar set; never changed."""
    root = tmp_path_factory.mktemp("sets")
    shard([str(SOURCE), str(SOURCE.parent / "asyncio"), str(SOURCE.parent / "json")], str(root / "text"))
    big = [str(path) for path in sorted(SOURCE.parent.glob("*.py"))]
    shard(big, str(root / "deep" / "big"), shard_tokens=TOKENS)
    shard_tars([str(SOURCE)], str(root / "tars"), shard_bytes=100_000)
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The larger token set, to be damaged."""
    return shutil.copytree(made / "deep" / "big", tmp_path / "copy")


def llmctl(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the real command, without a terminal."""
    environment = {**os.environ, "HOME": "/nonexistent", "COLUMNS": "200"}
    argv = [sys.executable, "-m", "llmctl", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, env=environment, check=False)


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_ls_tells_what_is_there(made: Path) -> None:
    """One data set in full, several in a table, a shard per line when asked, everything as JSON."""
    one = llmctl("data", "ls", str(made / "text"))
    assert one.returncode == 0
    assert "documents in 1 shard" in one.stdout
    assert "uint16 · bytes · 257 ids · end 256" in one.stdout
    several = llmctl("data", "ls", str(made)).stdout.splitlines()
    assert [line.split()[:2] for line in several[1:]] == [
        [str(made / name), form]
        for name, form in (("deep/big", "tokens"), ("tars", "tar"), ("text", "tokens"))
    ]
    manifest = read_dataset(open_store(str(made / "deep/big")))
    shards = llmctl("data", "ls", str(made / "deep/big"), "--shards").stdout
    assert all(entry.name in shards for entry in manifest.shards if hasattr(entry, "name"))
    document = json.loads(llmctl("data", "ls", str(made / "deep/big"), "-o", "json", "--shards").stdout)
    (found,) = document["datasets"]
    assert codec.decode(ShardManifest, found) == manifest


def test_ls_of_nothing_says_so(tmp_path: Path) -> None:
    """A folder without a data set: exit code 102 and the command that makes one."""
    done = llmctl("data", "ls", str(tmp_path))
    assert done.returncode == 102
    assert "llmctl data shard SOURCE" in done.stderr


def test_verify_names_every_damage_at_once(copy: Path) -> None:
    """A flipped byte, a missing, a cut file: each is named, the flipped one with its MiB; exit code 21."""
    assert llmctl("data", "verify", str(copy)).returncode == 0
    flip(copy / "shard-00001.bin", (1 << 20) + 77)
    (copy / "shard-00000.idx").unlink()
    (copy / "shard-00002.idx").write_bytes(b"cut")
    done = llmctl("data", "verify", str(copy), "-o", "json")
    assert done.returncode == 21
    (found,) = json.loads(done.stdout)["datasets"]
    assert {finding["path"]: finding["ranges"] for finding in found["findings"]} == {
        "shard-00000.idx": [],
        "shard-00001.bin": [[1 << 20, 2 << 20]],
        "shard-00002.idx": [],
    }
    lines = llmctl("data", "verify", str(copy)).stdout
    assert "damaged within bytes 1048576-2097151" in lines
    assert "shard-00000.idx: no such file" in lines
    assert "expected" in lines
    assert "found 3" in lines


@pytest.mark.parametrize("at", [0, 511, 700, -1])
def test_verify_finds_any_byte_of_a_tar(made: Path, tmp_path: Path, at: int) -> None:
    """One wrong bit in a header, a picture or the padding of a tar is found."""
    copy = shutil.copytree(made / "tars", tmp_path / "copy")
    flip(copy / "shard-000000.tar", at)
    store = open_store(str(copy))
    (found,) = damages(store, [shard.file for shard in read_dataset(store).shards if hasattr(shard, "file")])
    assert found.path == "shard-000000.tar"


def test_verify_reads_in_bounded_memory_and_tells_all_bytes(copy: Path) -> None:
    """The progress adds up to every byte that the manifest lists."""
    store = open_store(str(copy))
    manifest = read_dataset(store)
    assert isinstance(manifest, ShardManifest)
    entries = [entry for one in manifest.shards for entry in (one.bin, one.idx)]
    told: list[int] = []
    assert damages(store, entries, told.append) == []
    assert sum(told) == sum(entry.size for entry in entries)
    assert max(told) <= 1 << 20


def test_overwrite_mends_a_damaged_data_set(made: Path, tmp_path: Path) -> None:
    """The same command with --overwrite makes a damaged set anew, and leaves a whole one alone."""
    dest = tmp_path / "text"
    words = ("data", "shard", str(SOURCE), str(dest), "--shard-tokens", "200000", "--overwrite")
    assert llmctl(*words).returncode == 0
    before = {path.name: path.stat().st_mtime_ns for path in dest.iterdir()}
    assert llmctl(*words).returncode == 0
    assert {path.name: path.stat().st_mtime_ns for path in dest.iterdir()} == before
    flip(dest / "shard-00000.bin", 9)
    assert llmctl(*words).returncode == 0
    assert llmctl("data", "verify", str(dest)).returncode == 0


def rewritten(folder: Path, change: Callable[[ShardManifest], ShardManifest]) -> list[str]:
    """The findings of an audit after the manifest was changed and all hashes in it made right again."""
    store = open_store(str(folder))
    manifest = read_dataset(store)
    assert isinstance(manifest, ShardManifest)
    changed = change(manifest)

    def entry(old: FileEntry) -> FileEntry:
        return file_entry(folder / old.path, old.path)

    shards = tuple(replace(one, bin=entry(one.bin), idx=entry(one.idx)) for one in changed.shards)
    changed = replace(changed, shards=shards)
    store.write_bytes("manifest.json", codec.dumps(changed).encode())
    files = [entry for one in changed.shards for entry in (one.bin, one.idx)]
    assert damages(store, files) == []
    return [finding.problem for finding in audit(store, changed)]


def patch(path: Path, kind: str, at: int, value: int) -> None:
    """Replace one item of a binary file."""
    items = array(kind)
    items.frombytes(path.read_bytes())
    items[at] = value
    path.write_bytes(items.tobytes())


def test_a_right_data_set_has_no_finding(made: Path) -> None:
    """What `data shard` makes passes its own audit, whatever the format."""
    done = llmctl("data", "audit", str(made))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("✓") == 3


def starts_of(folder: Path) -> array[int]:
    starts = array("Q")
    starts.frombytes((folder / "shard-00000.idx").read_bytes())
    return starts


def break_end(folder: Path) -> None:
    patch(folder / "shard-00000.bin", "H", starts_of(folder)[3] - 1, 65)


def break_id(folder: Path) -> None:
    patch(folder / "shard-00001.bin", "H", 12_345, 300)


def break_order(folder: Path) -> None:
    patch(folder / "shard-00000.idx", "Q", 3, starts_of(folder)[2])


def break_first(folder: Path) -> None:
    patch(folder / "shard-00000.idx", "Q", 0, 1)


def add_stray(folder: Path) -> None:
    (folder / "shard-00099.bin").write_bytes(b"left by nobody")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (break_end, "has no end token there"),
        (break_id, "token 12345 has id 300 >= 257"),
        (break_order, "document 3 does not begin behind the last one"),
        (break_first, "no document begins at the first token"),
        (add_stray, "shard-00099.bin: not listed in the manifest"),
    ],
)
def test_audit_finds_what_hashes_can_not(copy: Path, damage: Callable[[Path], None], told: str) -> None:
    """Wrong tokens, documents or files under right hashes: named with their place."""
    damage(copy)
    found = rewritten(copy, lambda manifest: manifest)
    assert any(told in problem for problem in found), found


def without_second(manifest: ShardManifest) -> ShardManifest:
    return replace(manifest, shards=manifest.shards[:1] + manifest.shards[2:])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: replace(m, tokens=m.tokens + 1), "tokens, its shards have"),
        (lambda m: replace(m, documents=m.documents - 1), "documents, its shards have"),
        (without_second, "shard-00002 stands at place 1"),
        (lambda m: replace(m, vocab_size=100, eos=90), ">= 100"),
        (
            lambda m: replace(m, shards=(replace(m.shards[0], documents=1), *m.shards[1:])),
            "the manifest says 1",
        ),
    ],
)
def test_audit_finds_a_manifest_that_tells_wrong(copy: Path, change: Any, told: str) -> None:
    """Counts, a missing number, another vocabulary: the manifest is compared with what is there."""
    found = rewritten(copy, change)
    assert any(told in problem for problem in found), found


def test_audit_of_tars_finds_torn_samples(made: Path, tmp_path: Path) -> None:
    """A tar that is replaced by another one: samples twice and counts that differ are findings."""
    copy = shutil.copytree(made / "tars", tmp_path / "copy")
    shutil.copy(copy / "shard-000000.tar", copy / "shard-000001.tar")
    done = llmctl("data", "audit", str(copy))
    assert done.returncode == 21
    assert "is not in one piece" in done.stdout
    (copy / "shard-000000.tar").write_bytes((copy / "shard-000000.tar").read_bytes()[:1300])
    assert "not a whole tar" in llmctl("data", "audit", str(copy)).stdout


def test_tar_options_are_told_from_those_of_tokens(tmp_path: Path) -> None:
    """An option of the other format is refused, not ignored; sizes are read with units."""
    words = ("data", "shard", str(SOURCE), str(tmp_path / "out"), "--format", "tar")
    wrong = llmctl(*words, "--tokenizer", "bytes")
    assert wrong.returncode == 2
    assert "--tokenizer means nothing for --format tar" in wrong.stderr
    assert llmctl(*words, "--shard-bytes", "100k").returncode == 0
    files = sorted((tmp_path / "out").glob("*.tar"))
    assert len(files) > 2
    assert llmctl(*words, "--shard-bytes", "many", "--overwrite").returncode == 2
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert len(set(hashes)) == len(hashes)
