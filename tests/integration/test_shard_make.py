"""Making a corpus of real text: right tokens, the same bytes however it is made, and clear refusals."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import sysconfig
from array import array
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as token_decoders

from llmctl.errors import ConfigError, IntegrityError, TransferError
from llmctl.storage.corpus import sources as cutting
from llmctl.storage.corpus.dataset import read_manifest
from llmctl.storage.corpus.documents import documents
from llmctl.storage.corpus.pool import EncoderPool
from llmctl.storage.corpus.progress import Progress
from llmctl.storage.corpus.shard import shard
from llmctl.storage.corpus.tokenizer import manifest_tokenizer, open_tokenizer
from llmctl.storage.files import Store, open_store
from llmctl.storage.hashing import verify
from llmctl.wire.manifests import ShardManifest

STDLIB = Path(sysconfig.get_path("stdlib"))
SOURCES = [str(STDLIB / name) for name in ("json", "asyncio", "email", "concurrent", "ast.py", "*e.py")]


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file in a folder, hidden ones included."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def token_stream(store: Store, manifest: ShardManifest) -> array[int]:
    """All tokens of a corpus in a row."""
    tokens = array("H" if manifest.dtype == "uint16" else "I")
    for entry in manifest.shards:
        tokens.frombytes(store.read_bytes(entry.bin.path))
    return tokens


def stored_documents(store: Store, manifest: ShardManifest) -> list[list[int]]:
    """The documents as token lists, cut where the .idx files say they begin."""
    tokens, starts, base = token_stream(store, manifest), [], 0
    for entry in manifest.shards:
        index = array("Q")
        index.frombytes(store.read_bytes(entry.idx.path))
        assert len(index) == entry.documents
        starts += [base + start for start in index]
        base += entry.tokens
    return [list(tokens[a:b]) for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE trained on some real code."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = token_decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([(STDLIB / "ast.py").read_text()], trainer)
    path = tmp_path_factory.mktemp("bpe") / "mine.json"
    tokenizer.save(str(path))
    return path


def test_the_corpus_is_the_text(tmp_path: Path) -> None:
    """Tokens, document starts, counts and hashes are those of the input, document by document."""
    manifest = shard(SOURCES, str(tmp_path / "out"), shard_tokens=200_000, workers=2)
    store = open_store(str(tmp_path / "out"))
    texts = [text.encode("utf-8", "surrogateescape") for text in documents(SOURCES)]
    assert stored_documents(store, manifest) == [[*text, 256] for text in texts]
    assert manifest.tokens == sum(map(len, texts)) + len(texts)
    assert manifest.documents == len(texts)
    assert [entry.tokens for entry in manifest.shards[:-1]] == [200_000] * (len(manifest.shards) - 1)
    assert (manifest.dtype, manifest.vocab_size, manifest.eos, manifest.tokenizer) == (
        "uint16",
        257,
        256,
        "bytes",
    )
    for entry in manifest.shards:
        verify(store, entry.bin)
        verify(store, entry.idx)
    assert read_manifest(store) == manifest


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 and 3 workers leave byte-identical folders: shards, indexes and manifest."""
    monkeypatch.setattr(cutting, "UNIT_BYTES", 100_000)
    for workers in (1, 3):
        shard(SOURCES, str(tmp_path / str(workers)), shard_tokens=123_457, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert "manifest.json" in contents(tmp_path / "1")
    assert len(list((tmp_path / "1").glob("shard-*.bin"))) > 10


def test_the_size_of_units_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units are only work: cutting the input otherwise gives the same corpus of whole documents."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(SOURCES[:1])))
    one = shard([str(path)], str(tmp_path / "one"), shard_tokens=10_000)
    monkeypatch.setattr(cutting, "UNIT_BYTES", 5_000)
    assert shard([str(path)], str(tmp_path / "two"), shard_tokens=10_000) == one


def test_memory_to_memory_is_as_disk_to_disk(tmp_path: Path) -> None:
    """Source and destination in any store: the same manifest and the same bytes."""
    base = f"memory://{secrets.token_hex(6)}"
    source, target = open_store(f"{base}/in"), open_store(f"{base}/out")
    (tmp_path / "in").mkdir()
    for path in sorted(STDLIB.glob("json/*.py")):
        source.put_file(path, path.name)
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    there = shard([f"{base}/in"], f"{base}/out", shard_tokens=20_000)
    here = shard([str(tmp_path / "in")], str(tmp_path / "out"), shard_tokens=20_000)
    assert there == here
    names = [file.path for file in target.list() if not file.path.startswith(".")]
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".")
    for name in names:
        assert target.read_bytes(name) == (tmp_path / "out" / name).read_bytes()


def test_a_tokenizer_file_travels_with_the_corpus(tmp_path: Path, bpe: Path) -> None:
    """The shards hold that tokenizer's ids, and the stored copy, checked by hash, decodes them."""
    manifest = shard(SOURCES[:1], str(tmp_path / "out"), tokenizer=str(bpe), shard_tokens=5_000, workers=2)
    store = open_store(str(tmp_path / "out"))
    stored = manifest_tokenizer(store, manifest)
    texts = list(documents(SOURCES[:1]))
    assert stored_documents(store, manifest) == [
        [*open_tokenizer(str(bpe)).encode(text), 0] for text in texts
    ]
    assert [stored.decode(ids) for ids in stored_documents(store, manifest)] == texts
    assert manifest.tokenizer_file is not None
    assert store.read_bytes(manifest.tokenizer_file.path) == bpe.read_bytes()
    store.write_bytes(manifest.tokenizer_file.path, bpe.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        manifest_tokenizer(store, manifest)


def test_dtype_follows_the_vocabulary(tmp_path: Path) -> None:
    """65536 ids fit uint16, one more needs uint32; a uint16 that can't hold the ids is refused."""
    text = tmp_path / "a.txt"
    text.write_text("w7 w65535 w65536 w7")
    made = {}
    for size in (1 << 16, (1 << 16) + 1):
        vocabulary = {"</s>": 0, **{f"w{i}": i for i in range(1, size)}}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))  # noqa: S106
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.save(str(tmp_path / f"{size}.json"))
        made[size] = shard([str(text)], str(tmp_path / f"o{size}"), tokenizer=str(tmp_path / f"{size}.json"))
        assert made[size].vocab_size == size
    assert [manifest.dtype for manifest in made.values()] == ["uint16", "uint32"]
    small, large = (open_store(str(tmp_path / f"o{size}")) for size in made)
    assert list(token_stream(small, made[1 << 16])) == [7, 65535, 1, 7, 0]
    assert list(token_stream(large, made[(1 << 16) + 1])) == [7, 65535, 65536, 7, 0]
    with pytest.raises(ConfigError, match="uint16 can't hold the 65537 ids"):
        shard([str(text)], str(tmp_path / "x"), tokenizer=str(tmp_path / "65537.json"), dtype="uint16")
    assert shard([str(text)], str(tmp_path / "y"), dtype="uint32").dtype == "uint32"
    with pytest.raises(ConfigError, match="'int8'"):
        shard([str(text)], str(tmp_path / "x"), dtype="int8")


def test_a_document_longer_than_a_shard_goes_on_in_the_next(tmp_path: Path) -> None:
    """A long document spans shards: they are full, and shards without a beginning have an empty index."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a" * 1000)
    (tmp_path / "in" / "b.txt").write_text("b" * 10)
    manifest = shard([str(tmp_path / "in")], str(tmp_path / "out"), shard_tokens=300)
    assert [(entry.tokens, entry.documents) for entry in manifest.shards] == [
        (300, 1),
        (300, 0),
        (300, 0),
        (112, 1),
    ]
    expected = [[97] * 1000 + [256], [98] * 10 + [256]]
    assert stored_documents(open_store(str(tmp_path / "out")), manifest) == expected


def test_a_text_larger_than_a_unit_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that several workers share is one document with one eos, byte for byte."""
    monkeypatch.setattr(cutting, "UNIT_BYTES", 70_000)
    path = tmp_path / "a.txt"
    path.write_bytes(b"line \xc3\xa4 \xff\n" * 50_000)
    manifest = shard([str(path)], str(tmp_path / "out"), workers=2)
    assert stored_documents(open_store(str(tmp_path / "out")), manifest) == [[*path.read_bytes(), 256]]


def test_empty_documents_and_binaries_are_left_out(tmp_path: Path) -> None:
    """Documents without text are no documents; skipped binaries are reported; nothing at all is an error."""
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jsonl").write_text('{"text": ""}\n{"text": "x"}\n{"text": ""}\n')
    (source / "empty.txt").write_bytes(b"")
    (source / "image.bin").write_bytes(b"\0\1")
    seen: list[Progress] = []
    manifest = shard([str(source)], str(tmp_path / "out"), progress=seen.append)
    assert stored_documents(open_store(str(tmp_path / "out")), manifest) == [[120, 256]]
    assert (seen[-1].skipped, seen[-1].documents, seen[-1].tokens) == (1, 1, 2)
    (source / "a.jsonl").write_text('{"text": ""}\n\n')
    with pytest.raises(ConfigError, match="the input holds no text"):
        shard([str(source)], str(tmp_path / "none"))
    assert list((tmp_path / "none").iterdir()) == []


def test_progress_counts_up_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress never goes back and ends at the manifest's numbers."""
    monkeypatch.setattr(cutting, "UNIT_BYTES", 100_000)
    seen: list[Progress] = []
    manifest = shard(SOURCES, str(tmp_path / "out"), shard_tokens=100_000, progress=seen.append)
    assert len(seen) > 5
    assert [step.bytes_done for step in seen] == sorted(step.bytes_done for step in seen)
    assert seen[-1].bytes_done == seen[-1].bytes_total > 0
    assert (seen[-1].tokens, seen[-1].documents) == (manifest.tokens, manifest.documents)


def test_a_bad_line_ends_it_and_no_data_set_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's error arrives with file, line and hint; of two bad lines always the first."""
    monkeypatch.setattr(cutting, "UNIT_BYTES", 2_000)
    lines = [json.dumps({"text": "good text"}) for _ in range(2000)]
    lines[1500] = lines[900] = json.dumps({"txt": "?"})
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for workers in (1, 3):
        # Too large for a shard to be whole before the bad line: nothing is left to be in the way.
        with pytest.raises(ConfigError, match=r"a\.jsonl:901: no key `text`") as caught:
            shard([str(tmp_path / "a.jsonl")], str(tmp_path / "out"), workers=workers)
        assert caught.value.hint == "did you mean --field txt?"
        assert not (tmp_path / "out" / "manifest.json").exists()
        assert list((tmp_path / "out").iterdir()) == []


def test_another_data_set_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    """The same command is done at once; other settings or changed input are refused without overwrite."""
    source, out = tmp_path / "a.txt", tmp_path / "out"
    source.write_text("some text " * 100)
    first = shard([str(source)], str(out), shard_tokens=100)
    stamps = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert shard([str(source)], str(out), shard_tokens=100) == first
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == stamps
    with pytest.raises(ConfigError, match="already holds a data set") as caught:
        shard([str(source)], str(out), shard_tokens=400)
    assert "--overwrite" in str(caught.value.hint)
    source.write_text("same size!" * 100)
    with pytest.raises(ConfigError, match="already holds a data set"):
        shard([str(source)], str(out), shard_tokens=100)
    assert contents(out).keys() == stamps.keys()
    second = shard([str(source)], str(out), shard_tokens=400, overwrite=True)
    assert second.shards != first.shards
    assert {path.name for path in out.iterdir()} == {
        ".input.json",
        "manifest.json",
        *(f"shard-{i:05d}.{end}" for i in range(3) for end in ("bin", "idx")),
    }


def test_a_destination_inside_the_source_is_not_its_own_input(tmp_path: Path) -> None:
    """`shard . ./shards` twice: the corpus is no part of the text."""
    (tmp_path / "a.txt").write_text("text")
    first = shard([str(tmp_path)], str(tmp_path / "shards"))
    assert shard([str(tmp_path)], str(tmp_path / "shards")) == first
    assert first.documents == 1


def test_a_full_disk_is_one_line_and_nothing_half_written(tmp_path: Path) -> None:
    """No room, in an encoder or for a shard: one TransferError, and no unfinished shard is left."""
    script = f"""
import resource, sys
from llmctl.errors import TransferError
from llmctl.storage.corpus import sources
from llmctl.storage.corpus.shard import shard
sources.UNIT_BYTES = 50_000
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    shard([{str(STDLIB / "email")!r}], {str(tmp_path / "out")!r}, shard_tokens=int(sys.argv[2]), workers=1)
except TransferError as error:
    print(error)
"""
    for limit, shard_tokens in ((20_000, 10_000), (450_000, 10**6)):
        done = subprocess.run(
            [sys.executable, "-c", script, str(limit), str(shard_tokens)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert re.fullmatch(r"storage: .*: can't write: File too large\n", done.stdout), done
        assert list((tmp_path / "out").glob("shard-*")) == []
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_encoder_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker process that ends early is an error with its last words, never a hang or a short corpus."""
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(TransferError, match=r"an encoder process ended early \(exit 1\): .+"):
        shard([str(tmp_path / "a.txt")], str(tmp_path / "out"))


def test_a_file_called_like_a_module_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start in a folder that holds a json.py without running it."""
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert shard(["json.py"], "out", workers=1).documents == 1


def test_encoders_are_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No child process is left, after success and after an error."""
    started: list[int] = []
    end = EncoderPool.__exit__

    def exit_and_note(pool: EncoderPool, *error: object) -> None:
        started.extend(encoder.pid for encoder in pool.encoders)
        end(pool, *error)  # type: ignore[arg-type]

    monkeypatch.setattr(EncoderPool, "__exit__", exit_and_note)
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text("no json")
    shard([str(tmp_path / "a.txt")], str(tmp_path / "out"))
    with pytest.raises(IntegrityError):
        shard([str(tmp_path / "b.jsonl")], str(tmp_path / "out2"))
    assert len(started) == 2
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
