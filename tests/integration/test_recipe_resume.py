"""Going on where a run ended: the same losses as if it had never stopped, whatever ended it."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.worker_kit import DEADLINE_S, RECIPE, Cluster, make_corpus

pytestmark = pytest.mark.torch

TWENTY = replace(RECIPE, steps=20, checkpoint_every=10)
ENDLESS = replace(RECIPE, steps=100_000, checkpoint_every=5, keep=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="module")
def straight(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """One process, twenty steps without a stop, a checkpoint at step 10."""
    cluster = Cluster(base=tmp_path_factory.mktemp("straight"), corpus=corpus)
    cluster.train(TWENTY)
    return cluster


def from_step_10(straight: Cluster, base: Path) -> Path:
    """A folder with nothing but the checkpoint of step 10."""
    shutil.copytree(straight.checkpoints() / "step-00000010", base / "step-00000010")
    return base


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "deadline"
        time.sleep(0.02)


def test_a_resumed_process_repeats_every_bit(straight: Cluster, tmp_path: Path) -> None:
    """10 steps, a new process and 10 more give exactly the losses of 20 straight ones."""
    uri = str(from_step_10(straight, tmp_path / "place"))
    resumed = replace(straight, base=tmp_path, checkpoint_uri=uri, attempt=2)
    resumed.train(TWENTY)
    assert [line["step"] for line in resumed.lines()] == list(range(11, 21))
    assert resumed.losses() == straight.losses()[10:]


def test_a_changed_sample_order_is_said(straight: Cluster, tmp_path: Path) -> None:
    """Resuming with another batch size goes on, but says that samples may repeat; and only then."""
    uri = str(from_step_10(straight, tmp_path / "place"))
    resumed = replace(straight, base=tmp_path, checkpoint_uri=uri, attempt=2)
    resumed.train(replace(TWENTY, steps=12, global_batch=4))
    again = replace(resumed, attempt=3)
    again.train(replace(TWENTY, steps=13, global_batch=4))
    assert any("global_batch changed" in line["text"] for line in resumed.lines("note"))
    assert not any("changed" in line["text"] for line in again.lines("note"))


def test_another_number_of_ranks_goes_on_alike(straight: Cluster, tmp_path: Path) -> None:
    """A checkpoint of one rank resumed on two hosts with one rank each, and their losses agree."""
    uri = str(from_step_10(straight, tmp_path / "place"))
    resumed = replace(straight, base=tmp_path, checkpoint_uri=uri, ranks=(1, 1), attempt=2)
    resumed.train(TWENTY)
    gaps = [abs(a - b) for a, b in zip(resumed.losses(), straight.losses()[10:], strict=True)]
    assert max(gaps) < 1e-5


def test_a_host_without_the_checkpoint_gets_it_from_one_that_has_it(
    straight: Cluster, corpus: Path, tmp_path: Path
) -> None:
    """Places that are not shared: a new host 0 joins empty-handed, host 1 holds step 10."""
    cluster = Cluster(base=tmp_path, corpus=corpus, ranks=(1, 1), attempt=2)
    from_step_10(straight, cluster.checkpoints(1))
    cluster.train(TWENTY)
    assert [line["step"] for line in cluster.lines()] == list(range(11, 21))
    gaps = [abs(a - b) for a, b in zip(cluster.losses(), straight.losses()[10:], strict=True)]
    assert max(gaps) < 1e-5
    assert cluster.committed(0) == ["step-00000020"]
    assert cluster.committed(1) == ["step-00000010", "step-00000020"]


def test_sigterm_keeps_the_progress(corpus: Path, tmp_path: Path) -> None:
    """A stop finishes the step, commits a checkpoint of it on every rank's behalf and exits with 143."""
    cluster = Cluster(base=tmp_path, corpus=corpus, ranks=(2,))
    job = cluster.start(ENDLESS)
    wait_for(lambda: len(cluster.committed()) > 0)
    job.processes[1].send_signal(signal.SIGTERM)  # one is enough: the ranks agree
    assert [code for code, _, _ in job.results()] == [143, 143]
    last = cluster.lines()[-1]["step"]
    assert cluster.committed()[-1] == f"step-{last:08d}"


def test_without_grace_a_stop_does_not_save(corpus: Path, tmp_path: Path) -> None:
    """Where there is no time for a save, none is begun, and the last committed one stays."""
    cluster = Cluster(base=tmp_path, corpus=corpus, grace_s=0.0)
    job = cluster.start(replace(ENDLESS, checkpoint_every=7))
    wait_for(lambda: len(cluster.committed()) > 0)
    job.processes[0].send_signal(signal.SIGTERM)
    assert [code for code, _, _ in job.results()] == [143]
    assert all(int(name.removeprefix("step-")) % 7 == 0 for name in cluster.committed())


def test_a_killed_run_resumes_from_what_was_committed(corpus: Path, tmp_path: Path) -> None:
    """kill -9 at any moment leaves whole checkpoints only; the next attempt goes on from the last one and
    clears what the dead one was writing."""
    cluster = Cluster(base=tmp_path, corpus=corpus)
    job = cluster.start(ENDLESS)
    wait_for(lambda: len(cluster.committed()) > 1)
    job.processes[0].kill()
    job.results()
    last = int(cluster.committed()[-1].removeprefix("step-"))
    torn = cluster.checkpoints() / f".tmp-step-{last + 5:08d}-demo-7f3a-1.part"
    torn.mkdir(exist_ok=True)
    (torn / "__0_0.distcp").write_bytes(b"half")
    alive = cluster.checkpoints() / ".tmp-step-00000005-other-11aa-9.part"
    alive.mkdir()
    again = replace(cluster, attempt=2)
    again.train(replace(ENDLESS, steps=last + 3))
    assert again.lines()[0]["step"] == last + 1
    assert not torn.exists()
    assert alive.exists(), "another run's folder is not ours to remove"


def test_sigterm_to_torchrun_keeps_the_progress_too(corpus: Path, tmp_path: Path) -> None:
    """A stop that reaches the launcher reaches the ranks: the last step is committed."""
    cluster = Cluster(base=tmp_path, corpus=corpus, ranks=(2,))
    job = cluster.torchrun(ENDLESS)
    wait_for(lambda: len(cluster.committed()) > 0)
    job.processes[0].send_signal(signal.SIGTERM)
    ((code, _, _),) = job.results()
    assert code != 0
    assert cluster.committed()[-1] == f"step-{cluster.lines()[-1]['step']:08d}"
