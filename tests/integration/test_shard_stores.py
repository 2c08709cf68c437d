"""Sharding from and to a real Ceph and a real HDFS: encoders have own clients, the bytes are the same."""

from __future__ import annotations

import hashlib
import json
import secrets
import sysconfig
from pathlib import Path

import pytest

from llmctl.storage.corpus.dataset import files_of, read_dataset, read_manifest
from llmctl.storage.corpus.loader import SampleLoader
from llmctl.storage.corpus.mixture import open_order
from llmctl.storage.corpus.reader import open_reader
from llmctl.storage.corpus.shard import shard
from llmctl.storage.corpus.tarmake import shard_tars
from llmctl.storage.corpus.tarset import TarSet
from llmctl.storage.files import open_store
from llmctl.storage.findings import damages
from tests.contract.stores import store_uri

pytestmark = pytest.mark.stores

SOURCES = sorted(Path(sysconfig.get_path("stdlib"), "email").glob("*.py"))
TOKENS = 60_000


@pytest.fixture(params=["s3-http", "hdfs"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty folder in a real store."""
    return store_uri(request, request.param, tmp_path, monkeypatch)


def texts() -> list[str]:
    """Documents that people wrote."""
    return [path.read_text() for path in SOURCES]


def parquet(path: Path) -> bytes:
    """The documents as a parquet file of several row groups."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    writer.write_table(pyarrow.table({"body": texts()}), path, row_group_size=7)
    return path.read_bytes()


def hashes(uri: str) -> dict[str, str]:
    """Of every visible file that is part of the data set."""
    store = open_store(uri)
    return {
        entry.path: hashlib.sha256(store.read_bytes(entry.path)).hexdigest()
        for entry in files_of(read_dataset(store))
    }


def test_parquet_in_the_store_becomes_shards_in_the_store(remote: str, tmp_path: Path) -> None:
    """Two encoder processes read the store by themselves; the shards are those of the same file on a disk."""
    data = parquet(tmp_path / "docs.parquet")
    open_store(remote).write_bytes("raw/docs.parquet", data)
    settings = {"field": "body", "shard_tokens": TOKENS, "workers": 2}
    made = shard([f"{remote}/raw/*.parquet"], f"{remote}/corpus", **settings)  # type: ignore[arg-type]
    shard([str(tmp_path / "docs.parquet")], str(tmp_path / "corpus"), **settings)  # type: ignore[arg-type]
    assert made.documents == len([text for text in texts() if text])
    assert len(made.shards) > 3
    assert hashes(f"{remote}/corpus") == hashes(str(tmp_path / "corpus"))
    assert damages(open_store(f"{remote}/corpus"), files_of(made)) == []


def test_lines_on_disk_become_shards_that_a_mixture_reads(remote: str, tmp_path: Path) -> None:
    """JSON lines to the store, beside a corpus on disk: a cold loader at a late step reads right."""
    lines = tmp_path / "docs.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    uris = [f"{remote}/lines", str(tmp_path / "local")]
    for uri in uris:
        shard([str(lines)], uri, shard_tokens=TOKENS, workers=2)
    reader = open_reader(uris, tmp_path / "cache", cache_bytes=10 * TOKENS)
    order = open_order(reader.manifests, [1, 1], 128, 0)
    manifest = read_manifest(open_store(uris[1]))
    with SampleLoader(reader, order, global_batch=8, rank=1, world=2, start_step=10**6) as loader:
        for _ in range(10):
            batch = next(loader)
            for number, ref in enumerate(batch.refs):
                raw = (tmp_path / "local" / manifest.shards[ref.shard].bin.path).read_bytes()
                expected = raw[2 * ref.start : 2 * (ref.start + 129)]
                assert batch.tokens[number * 258 : (number + 1) * 258] == expected
    reader.close()


def test_tars_to_and_from_the_store(remote: str, tmp_path: Path) -> None:
    """Files of the store become tars in the store; every file comes back whole, and no work file stays."""
    store = open_store(remote)
    for path in SOURCES[:12]:
        store.write_bytes(f"raw/{secrets.token_hex(2)}-{path.stem}.py", path.read_bytes())
    shard_tars([f"{remote}/raw"], f"{remote}/tars", shard_bytes=60_000)
    found = [sample.files["py"] for sample in TarSet(f"{remote}/tars", tmp_path / "cache").samples()]
    assert sorted(found) == sorted(path.read_bytes() for path in SOURCES[:12])
    names = {file.path for file in open_store(f"{remote}/tars").list()}
    tars = {entry.path for entry in files_of(read_dataset(open_store(f"{remote}/tars")))}
    assert names == tars | {"manifest.json", ".input.json"}
