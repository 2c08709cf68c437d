"""The proof of the order on real runs: killed, resumed with other ranks, read by a loader gone wrong."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.controller.collect.audit import Audit, audit_folder
from llmctl.controller.collect.proof.findings import Verdict
from llmctl.wire.consumed import read_journal
from llmctl.wire.specs import DataSource
from tests.worker_kit import DEADLINE_S, RECIPE, ROOT, Cluster, make_corpus, real_text

pytestmark = pytest.mark.torch

TWENTY = replace(RECIPE, steps=20, checkpoint_every=10)
ENDLESS = replace(RECIPE, steps=100_000, checkpoint_every=5, keep=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("data") / "corpus")


def audited(cluster: Cluster, folder: Path) -> Audit:
    """Audit a copy of what `pull` would bring."""
    shutil.rmtree(folder, ignore_errors=True)
    for host in range(len(cluster.ranks)):
        shutil.copytree(
            cluster.run_dir(host).root, folder / f"h{host}", ignore=shutil.ignore_patterns("checkpoints")
        )
    return audit_folder(folder)


def said(audit: Audit) -> str:
    return "\n".join(finding.text for finding in audit.proof.findings)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "deadline"
        time.sleep(0.02)


def test_killed_and_resumed_with_more_ranks_is_one_proof(corpus: Path, tmp_path: Path) -> None:
    """kill -9 of two ranks, three go on from the last checkpoint: every sample exactly once, and said so."""
    place = str(tmp_path / "place")
    first = Cluster(base=tmp_path, corpus=corpus, ranks=(1, 1), checkpoint_uri=place)
    job = first.start(ENDLESS)
    wait_for(lambda: len(first.committed()) > 1)
    for process in job.processes:
        process.kill()
    job.results()
    resumed = int(first.committed()[-1].removeprefix("step-"))
    second = replace(first, ranks=(1, 2), attempt=2)
    second.train(replace(ENDLESS, steps=resumed + 7))
    audit = audited(second, tmp_path / "pulled")
    assert audit.proof.verdict is Verdict.OK, said(audit)
    stretches = [(s.attempt, s.start, s.end, s.header.world) for s in audit.proof.stretches]
    assert stretches == [(1, 0, resumed, 2), (2, resumed, resumed + 7, 3)]
    assert audit.proof.samples == (resumed + 7) * RECIPE.global_batch
    assert audit.notes == (f"{corpus} still is what was trained on",)


def test_no_checkpoint_is_ahead_of_the_journals(corpus: Path, tmp_path: Path) -> None:
    """At the moment when a checkpoint is seen, the journals of all ranks reach as far."""
    cluster = Cluster(base=tmp_path, corpus=corpus, ranks=(2,))
    job = cluster.start(replace(ENDLESS, checkpoint_every=1))
    attempt = cluster.run_dir().attempt(1)
    seen = {""}
    while len(seen) < 6:
        wait_for(lambda: cluster.committed()[-1:] > [max(seen)])
        seen.add(cluster.committed()[-1])
        for rank in range(2):
            journal = read_journal(Path(attempt.consumed(rank)).read_bytes())
            assert journal.steps[-1].end >= int(max(seen).removeprefix("step-"))
    for process in job.processes:
        process.kill()
    job.results()


def test_a_lost_host_and_a_damaged_journal_are_named(corpus: Path, tmp_path: Path) -> None:
    """A journal that is away leaves the proof incomplete, one that was changed breaks it."""
    cluster = Cluster(base=tmp_path, corpus=corpus, ranks=(1, 1), checkpoint_uri=str(tmp_path / "place"))
    cluster.train(TWENTY)
    path = Path(cluster.run_dir(1).attempt(1).consumed(1))
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"samples":', b'"sample5":', 1))
    damaged = audited(cluster, tmp_path / "pulled")
    path.unlink()
    lost = audited(cluster, tmp_path / "pulled")
    assert damaged.proof.verdict is Verdict.FAILED
    assert "rank 1 on h1: line 2 of its journal is damaged" in said(damaged)
    assert lost.proof.verdict is Verdict.INCOMPLETE
    assert said(lost) == "rank 1 on h1: no journal of attempt 1: it is not there"


def test_a_run_that_went_on_from_another_names_it(corpus: Path, tmp_path: Path) -> None:
    """It proves its own steps, and says which run proves those before."""
    place = str(tmp_path / "place")
    first = Cluster(base=tmp_path, corpus=corpus, checkpoint_uri=place)
    first.train(replace(TWENTY, steps=4))
    second = replace(first, attempt=2)
    second.train(replace(TWENTY, steps=6), run_id="other-11aa")
    shutil.rmtree(second.run_dir().attempt(1).root)
    audit = audited(second, tmp_path / "pulled")
    assert (audit.proof.verdict, audit.proof.start, audit.proof.end) == (Verdict.OK, 4, 6)
    assert "from checkpoint 4 of demo-7f3a" in audit.notes[0]


FAULTS = {
    "skip": ("refs.pop()", {"missing"}),
    "repeat": ("refs[0] = refs[1]", {"missing", "doubled"}),
    "shuffle": ("refs.reverse()", {"order"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_loader_that_reads_something_else_is_caught(fault: str, corpus: Path, tmp_path: Path) -> None:
    """A loader whose order goes wrong in step 7 of rank 1: the audit names step and rank."""
    code, kinds = FAULTS[fault]
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(
        "import os\n"
        "from llmctl.storage.corpus import loader\n"
        "class Wrong:\n"
        "    def __init__(self, right):\n"
        "        self._right = right\n"
        "    def __getattr__(self, name):\n"
        "        return getattr(self._right, name)\n"
        "    def samples(self, step, *rest):\n"
        "        refs = self._right.samples(step, *rest)\n"
        "        if step == 7 and os.environ.get('RANK') == '1':\n"
        f"            {code}\n"
        "        return refs\n"
        "start = loader.SampleLoader.__init__\n"
        "def init(self, reader, order, **keys):\n"
        "    start(self, reader, Wrong(order), **keys)\n"
        "loader.SampleLoader.__init__ = init\n"
    )
    cluster = Cluster(
        base=tmp_path, corpus=corpus, ranks=(2,), env={"PYTHONPATH": f"{tmp_path / 'faults'}:{ROOT}"}
    )
    cluster.train(replace(TWENTY, steps=10))
    audit = audited(cluster, tmp_path / "pulled")
    assert audit.proof.verdict is Verdict.FAILED
    assert {str(finding.kind) for finding in audit.proof.findings} == kinds
    assert {(finding.rank, finding.start) for finding in audit.proof.findings} == {(1, 7)}


def test_a_corpus_that_was_replaced_is_said(tmp_path: Path) -> None:
    """The journals prove the order of what was trained on; what lies there now is another thing."""
    corpus = make_corpus(tmp_path / "corpus")
    cluster = Cluster(base=tmp_path, corpus=corpus)
    cluster.train(replace(TWENTY, steps=2))
    shutil.rmtree(corpus)
    make_corpus(corpus, real_text(50_000))
    replaced = audited(cluster, tmp_path / "pulled")
    shutil.rmtree(corpus)
    gone = audited(cluster, tmp_path / "pulled")
    assert said(replaced) == f"{corpus} is not the corpus any more that was trained on"
    assert gone.proof.verdict is Verdict.OK
    assert "not compared with the corpus itself" in gone.notes[0]


def test_a_mixture_is_proven_too(corpus: Path, tmp_path: Path) -> None:
    """Two corpora with weights, two ranks: the same proof over both."""
    other = make_corpus(tmp_path / "other", real_text(20_000)[5_000:], shards=2)
    cluster = Cluster(base=tmp_path, corpus=corpus, ranks=(2,))
    mix = (DataSource(str(corpus), 0.7), DataSource(str(other), 0.3))
    cluster.train(TWENTY, data_uri=None, data_mix=mix)
    audit = audited(cluster, tmp_path / "pulled")
    assert audit.proof.verdict is Verdict.OK, said(audit)
    assert audit.proof.end == 20
    journal = read_journal(Path(cluster.run_dir().attempt(1).consumed(0)).read_bytes())
    assert journal.header is not None
    assert [mark.weight for mark in journal.header.corpora] == [0.7, 0.3]
