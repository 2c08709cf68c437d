"""Saving beside training: what training waits for, what it does not, and what becomes of a failure."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.errors import TransferError
from llmctl.storage.checkpoints import committed_steps, read_marker, verify_files
from llmctl.storage.files import Store, open_store
from llmctl.storage.local import LocalStore
from llmctl.storage.retention import Retention
from llmctl.wire.manifests import CheckpointManifest, checkpoint_name
from llmctl.worker.checkpoint import writer as writing
from llmctl.worker.checkpoint.load import find_latest, read_tensors, restore, saved_names
from llmctl.worker.checkpoint.place import Place
from llmctl.worker.checkpoint.save import Saver
from llmctl.worker.checkpoint.writer import Writer
from llmctl.worker.metrics import Metrics
from llmctl.worker.session import Session
from tests.integration.cluster import until
from tests.worker_kit import RECIPE, Cluster, make_corpus

pytestmark = pytest.mark.torch

WAIT_S = 60.0
ALONE = Session(
    rank=0,
    world=1,
    local_rank=0,
    host="h0",
    device=torch.device("cpu"),
    host_leaders=(0,),
    host_ranks=(0,),
)
TEMPLATE = CheckpointManifest(run_id="demo-7f3a", attempt=1, step=0, world_size=1, created_at=0.0, files=())


class Gated:
    """A real store whose uploads wait for a gate, and fail as long as they are told to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failing = 0
        self.sent: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put_file(self, local: Path, path: str) -> None:
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        if self.failing and local.suffix == ".distcp":
            self.failing -= 1
            raise TransferError(f"{path}: the store is out", stage="storage")
        self.sent.append(local.name)
        self._store.put_file(local, path)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gated:
    monkeypatch.setattr(writing, "PAUSES_S", (0.0, 0.0))
    return Gated(open_store(f"memory://async-{tmp_path.name}"))


@contextmanager
def saving(store: Gated, tmp_path: Path, **settings: Any) -> Iterator[Saver]:
    place = Place(store=store, desk=LocalStore(tmp_path / "desk"), shared=True)
    metrics = Metrics(path=str(tmp_path / "metrics.jsonl"), speaks=False)
    writer = Writer(
        session=ALONE,
        place=place,
        template=TEMPLATE,
        retention=Retention(keep=2),
        extra_files={},
        say=metrics.note,
    )
    saver = Saver(session=ALONE, writer=writer, metrics=metrics, **settings)
    yield saver
    store.gate.set()
    saver.close()


def told(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    path = tmp_path / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["kind"] == kind]


def loaded(store: Gated, tmp_path: Path) -> tuple[int, torch.Tensor]:
    """Step and weights of the newest checkpoint."""
    place = Place(store=store, desk=LocalStore(tmp_path / "again"), shared=True)
    found = find_latest(ALONE, place)
    assert found is not None
    into = {"model.w": torch.zeros(8)}
    restore(ALONE, place, found, into, ALONE.device)
    return found.step, into["model.w"]


def test_training_goes_on_while_the_store_takes_its_time(store: Gated, tmp_path: Path) -> None:
    """A save returns before anything is uploaded; what training changes then is not in that checkpoint."""
    weights = torch.ones(8)
    with saving(store, tmp_path) as saver:
        store.gate.clear()
        saver.save(1, {"model.w": weights})
        assert store.entered.wait(WAIT_S)
        weights.fill_(2.0)
        assert committed_steps(store) == []
        store.gate.set()
        saver.finish()
    step, saved = loaded(store, tmp_path)
    assert step == 1
    assert saved.eq(1.0).all()
    assert not any((tmp_path / "desk").iterdir())


def test_the_next_save_waits_for_the_last(store: Gated, tmp_path: Path) -> None:
    """Two saves are never under way at once: the buffers of the first are still being read."""
    with saving(store, tmp_path) as saver:
        store.gate.clear()
        saver.save(1, {"model.w": torch.full((8,), 1.0)})
        assert store.entered.wait(WAIT_S)
        second = threading.Thread(target=saver.save, args=(2, {"model.w": torch.full((8,), 2.0)}))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        store.gate.set()
        second.join(WAIT_S)
        saver.finish()
    assert committed_steps(store) == [1, 2]
    lines = told(tmp_path, "checkpoint")
    assert lines[1]["stalled_s"] >= lines[1]["waited_s"] > 0.2
    assert lines[0]["took_s"] > lines[0]["stalled_s"]


def test_a_passing_failure_is_tried_again_and_sends_only_what_is_missing(
    store: Gated, tmp_path: Path
) -> None:
    """Two failed uploads: the third try commits, nothing is written or sent twice, and people are told."""
    with saving(store, tmp_path) as saver:
        store.failing = 2
        saver.save(1, {"model.w": torch.ones(8)})
        saver.finish()
    assert committed_steps(store) == [1]
    assert sorted(store.sent) == [".metadata", "__0_0.distcp"]
    notes = [line["text"] for line in told(tmp_path, "note")]
    assert len(notes) == 2
    assert all("the store is out" in note and "tried again" in note for note in notes)


def test_a_commit_that_fails_is_tried_again_in_a_folder_too(
    store: Gated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk the folder has its final name before the marker is written: a second try finds it there."""
    folder = LocalStore(tmp_path / "folder")
    place = Place(store=folder, desk=folder, shared=True)
    write, failures = folder.write_bytes, [TransferError("input/output error", stage="storage")]

    def flaky(path: str, data: bytes) -> None:
        if failures:
            raise failures.pop()
        write(path, data)

    monkeypatch.setattr(folder, "write_bytes", flaky)
    said: list[str] = []
    writer = Writer(
        session=ALONE, place=place, template=TEMPLATE, retention=Retention(), extra_files={}, say=said.append
    )
    writer.write(1, {"model.w": torch.ones(8)})
    assert len(said) == 1
    verify_files(folder, checkpoint_name(1), read_marker(folder, 1))


def test_a_failed_checkpoint_is_told_and_the_next_one_works(store: Gated, tmp_path: Path) -> None:
    """`warn`: training is not disturbed, each failure is a line with its reason and count, nothing half-made
    is visible, and the next save is whole."""
    with saving(store, tmp_path) as saver:
        store.failing = 2 * writing.TRIES
        for step in (1, 2, 3):
            saver.save(step, {"model.w": torch.full((8,), float(step))})
            saver.settle()
            assert not saver.must_stop
        saver.finish()
    assert committed_steps(store) == [3]
    assert [(line["step"], line["in_a_row"]) for line in told(tmp_path, "checkpoint-failed")] == [
        (1, 1),
        (2, 2),
    ]
    assert any("training goes on without it" in line["text"] for line in told(tmp_path, "note"))
    assert loaded(store, tmp_path)[1].eq(3.0).all()


@pytest.mark.parametrize("in_background", [True, False])
def test_the_last_failure_is_the_jobs(store: Gated, tmp_path: Path, in_background: bool) -> None:
    """A training whose final state could not be kept has not succeeded, whatever on_failure says."""
    with saving(store, tmp_path, in_background=in_background) as saver:
        store.failing = writing.TRIES
        saver.save(1, {"model.w": torch.ones(8)}, last=True)
        with pytest.raises(TransferError, match="the store is out"):
            saver.finish()


@pytest.mark.parametrize("in_background", [True, False])
def test_a_job_that_wants_it_stops_at_the_first_failure(
    store: Gated, tmp_path: Path, in_background: bool
) -> None:
    """`stop`: the loop is told as soon as it is known, and no later save is begun."""

    def fail() -> None:
        saver.save(1, {"model.w": torch.ones(8)})
        saver.settle()
        assert saver.must_stop
        saver.save(2, {"model.w": torch.ones(8)})

    with saving(store, tmp_path, in_background=in_background, on_failure="stop") as saver:
        store.failing = writing.TRIES
        with pytest.raises(TransferError, match="the store is out"):
            fail()
    assert committed_steps(store) == []


def test_leaving_does_not_wait_for_a_store_that_hangs(store: Gated, tmp_path: Path) -> None:
    """A stop whose time is up leaves the save alone; it says so, and nothing of it is visible."""
    with saving(store, tmp_path) as saver:
        store.gate.clear()
        saver.save(1, {"model.w": torch.ones(8)})
        assert store.entered.wait(WAIT_S)
        assert not saver.settle(0.1)
        assert committed_steps(store) == []


def test_bytes_that_change_on_the_way_are_sent_again(store: Gated, tmp_path: Path) -> None:
    """What the store holds is read back: an upload that lost a bit is not committed, but repeated."""
    real = store._store.put_file
    flipped: list[str] = []

    def put_flipped(local: Path, path: str) -> None:
        if local.suffix == ".distcp" and not flipped:
            flipped.append(path)
            data = bytearray(local.read_bytes())
            data[len(data) // 2] ^= 1
            store._store.write_bytes(path, bytes(data))
        else:
            real(local, path)

    store.put_file = put_flipped  # type: ignore[method-assign]
    with saving(store, tmp_path) as saver:
        saver.save(1, {"model.w": torch.ones(8)})
        saver.finish()
    assert flipped
    assert loaded(store, tmp_path)[1].eq(1.0).all()
    assert any("expected sha256" in line["text"] for line in told(tmp_path, "note"))


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by name."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(metadata[name].size, dtype=metadata[name].properties.dtype) for name in metadata
    }
    assert set(tensors) == saved_names(folder)
    read_tensors(folder, tensors)
    return tensors


def cluster_of(base: Path, corpus: Path, **changes: Any) -> Cluster:
    return replace(Cluster(base=base, corpus=corpus, ranks=(2,)), **changes)


def test_beside_training_or_not_the_same_bits(tmp_path: Path) -> None:
    """Two ranks, saved beside training or while it waits: equal losses, and equal tensors in the checkpoint
    of the middle and of the end, random states included."""
    corpus = make_corpus(tmp_path / "corpus")
    clusters = [cluster_of(tmp_path / name, corpus) for name in ("async", "sync")]
    for cluster, wanted in zip(clusters, (True, False), strict=True):
        cluster.train(replace(RECIPE, checkpoint_every=2, keep=9, checkpoint_async=wanted))
    beside, waiting = clusters
    assert beside.losses() == waiting.losses()
    for step in (2, 8):
        states = [state_of(cluster.checkpoints() / f"step-{step:08d}") for cluster in clusters]
        assert states[0].keys() == states[1].keys()
        assert {f"rng.{rank}.cpu" for rank in (0, 1)} <= states[0].keys()
        for name in states[0]:
            assert torch.equal(states[0][name], states[1][name]), name
    for line in beside.lines("checkpoint"):
        assert line["took_s"] > line["stalled_s"] - line["waited_s"]


def test_each_rank_writes_its_own_part(tmp_path: Path) -> None:
    """The ranks of a checkpoint hold one copy of the state together: no file is a second copy."""
    cluster = cluster_of(tmp_path / "run", make_corpus(tmp_path / "corpus"), ranks=(3,))
    cluster.train(RECIPE)
    folder = cluster.checkpoints() / "step-00000008"
    sizes = sorted(path.stat().st_size for path in folder.glob("*.distcp"))
    assert len(sizes) == 3
    assert sizes[-1] < 2 * sizes[0]


def test_keep_every_keeps_milestones(tmp_path: Path) -> None:
    """keep 1, keep_every 4 of a run that saves every 2 of 10 steps: the milestones and the newest stay."""
    cluster = cluster_of(tmp_path / "run", make_corpus(tmp_path / "corpus"), ranks=(1,))
    cluster.train(replace(RECIPE, steps=10, checkpoint_every=2, keep=1, keep_every=4))
    assert cluster.committed() == ["step-00000004", "step-00000008", "step-00000010"]


def test_a_rank_that_dies_in_a_save_leaves_no_half(tmp_path: Path) -> None:
    """kill -9 of one rank of two hosts while a checkpoint is being written: the other one ends too, every
    checkpoint that can be seen is whole, and the next attempt goes on from it and leaves no rest."""
    place = tmp_path / "place"
    cluster = cluster_of(
        tmp_path / "run", make_corpus(tmp_path / "corpus"), ranks=(1, 1), checkpoint_uri=str(place)
    )
    job = cluster.start(replace(RECIPE, steps=100_000, checkpoint_every=2))
    until(cluster.committed, what="the first checkpoint")
    until(lambda: any(place.glob(".tmp-step-*/*")), what="a checkpoint under way")
    job.processes[1].kill()
    results = job.results()
    assert results[0][0] not in (0, 93), results
    newest = max(check_local(place))
    again = replace(cluster, attempt=2)
    again.train(replace(RECIPE, steps=newest + 2, checkpoint_every=2))
    assert again.lines()[0]["step"] == newest + 1
    assert max(check_local(place)) == newest + 2
    assert not any(place.glob(".tmp-*"))


def check_local(place: Path) -> list[int]:
    """Steps of all checkpoints, each read to its last byte."""
    store = LocalStore(place)
    for step in committed_steps(store):
        verify_files(store, checkpoint_name(step), read_marker(store, step))
    return committed_steps(store)
