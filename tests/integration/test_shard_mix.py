"""Training on a mixture: the same samples for any number of ranks, refused where tokens differ, audited."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.errors import ConfigError
from llmctl.storage.corpus.dataset import read_manifest
from llmctl.storage.corpus.loader import SampleLoader
from llmctl.storage.corpus.mixture import open_order
from llmctl.storage.corpus.reader import open_reader
from llmctl.storage.corpus.shard import shard
from llmctl.storage.files import open_store
from llmctl.wire import codec
from llmctl.wire.specs import DataSource
from tests import worker_kit
from tests.integration.cluster import Cluster

LENGTH = 24
WEIGHTS = [0.75, 0.25]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two corpora whose texts can be told apart by any sample: small letters on disk, digits in memory."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "letters.txt").write_text("the quick brown fox jumps over the lazy dog " * 900)
    (folder / "digits.txt").write_text("0123456789 " * 2000)
    uris = [str(folder / "letters"), f"memory://{secrets.token_hex(6)}/digits"]
    for name, uri in zip(("letters.txt", "digits.txt"), uris, strict=True):
        shard([str(folder / name)], uri, shard_tokens=7_000)
    return uris


def test_every_rank_reads_its_part_of_the_mixture(corpora: list[str], tmp_path: Path) -> None:
    """Ranks' batches joined are the order's samples with that corpus's own tokens, from several stores."""
    reader = open_reader(corpora, tmp_path)
    order = open_order(reader.manifests, WEIGHTS, LENGTH, 3)
    counts: Counter[int] = Counter()
    for rank in range(3):
        with SampleLoader(reader, order, global_batch=16, rank=rank, world=3, start_step=10**6) as loader:
            for step in range(10**6, 10**6 + 20):
                batch = next(loader)
                assert batch.step == step
                rows = memoryview(bytes(batch.tokens)).cast("H")
                for number, ref in enumerate(batch.refs):
                    row = rows[number * (LENGTH + 1) : (number + 1) * (LENGTH + 1)]
                    assert (48 <= max(row) <= 57 or max(row) == 256) == bool(ref.corpus)
                    counts[ref.corpus] += 1
    reader.close()
    assert counts.total() == 320
    assert 200 < counts[0] < 280


def test_corpora_that_differ_are_refused_by_name(corpora: list[str], tmp_path: Path) -> None:
    """Another dtype is an error that names both corpora before any step is done."""
    store = open_store(f"memory://{secrets.token_hex(6)}/wide")
    manifest = read_manifest(open_store(corpora[0]))
    store.write_bytes("manifest.json", codec.dumps(replace(manifest, dtype="uint32")).encode())
    with pytest.raises(ConfigError, match=rf"{corpora[0]} and {store.uri} can't be mixed: dtype"):
        open_reader([corpora[0], store.uri], tmp_path)


@pytest.mark.torch
def test_a_mixture_trains_alike_on_any_number_of_ranks(tmp_path: Path) -> None:
    """One rank and three ranks see the same samples of two corpora: the losses agree."""
    one = worker_kit.make_corpus(tmp_path / "one")
    other = worker_kit.make_corpus(tmp_path / "other", b"0123456789 " * 3000)
    mix = (DataSource(str(one), 0.6), DataSource(str(other), 0.4))
    losses = []
    for ranks in ((1,), (2, 1)):
        cluster = worker_kit.Cluster(base=tmp_path / f"world-{sum(ranks)}", corpus=one, ranks=ranks)
        cluster.train(data_uri=None, data_mix=mix)
        losses.append(cluster.losses())
        (marker,) = {path.read_text() for path in cluster.checkpoints().glob("step-00000008/COMMIT.json")}
        assert json.loads(marker)["data"]["mix"] == codec.encode(mix)
    assert len(losses[0]) == 8
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.torch
def test_a_job_with_a_mixture_from_plan_to_audit(tmp_path: Path) -> None:
    """job.yaml with `data.mix`: the plan shows the shares, two hosts train, each sample is used once."""
    cluster = Cluster(folder=tmp_path / "c")
    for name, text in (("a", "the quick brown fox jumps over the lazy dog. "), ("b", "0123456789 ")):
        (cluster.folder / f"{name}.txt").write_text(text * 600)
        cluster.run("data", "shard", f"{name}.txt", f"shards/{name}", "--workers", "1")
    model = {"size": "tiny", "layers": 1, "dim": 32, "heads": 2, "kv_heads": 1, "ffn_dim": 64}
    small = {"model": model, "steps": 6, "global_batch": 8, "micro_batch": 4, "sequence_length": 32}
    mix = [{"uri": "shards/a", "weight": 3}, {"uri": "shards/b", "weight": 1}]
    cluster.write_job(data={"mix": mix}, recipe=small, train={"launcher": "direct"})
    shown = cluster.run("train", "--dry-run")
    assert "75.00% of the samples" in shown.stdout + shown.stderr
    cluster.run("train")
    (pulled,) = (cluster.folder / "llmctl-runs").glob("t-*")
    told = cluster.run("data", "audit", pulled.name).stdout
    assert "48 samples" in told
    assert "exactly once" in told


@pytest.mark.torch
def test_a_missing_corpus_of_a_mixture_is_seen_before_the_start(tmp_path: Path) -> None:
    """One of two folders is not there: the check names it, nothing is started."""
    cluster = Cluster(folder=tmp_path / "c")
    (cluster.folder / "a.txt").write_text("some text " * 500)
    cluster.run("data", "shard", "a.txt", "shards/a", "--workers", "1")
    cluster.write_job(data={"mix": [{"uri": "shards/a"}, {"uri": "shards/none"}]})
    done = cluster.run("train", expect=10)
    assert "shards/none/manifest.json does not exist there" in done.stderr
