"""Checkpoints on disk: only whole ones are visible, only right ones are used, the newest ones are kept."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmctl.errors import ConfigError, IntegrityError, PreflightError, TransferError
from llmctl.storage.checkpoints import committed_steps, publish, read_marker
from llmctl.storage.files import open_store
from llmctl.storage.local import LocalStore
from llmctl.storage.retention import Retention, prune
from llmctl.wire.codec import loads
from llmctl.wire.manifests import COMMIT_MARKER, CheckpointManifest
from llmctl.worker.checkpoint.load import find_latest, restore
from llmctl.worker.checkpoint.place import Place, check_room
from llmctl.worker.checkpoint.writer import Writer
from llmctl.worker.session import Session
from tests.worker_kit import RECIPE, ROOT, Cluster, make_corpus

pytestmark = pytest.mark.torch

ALONE = Session(
    rank=0,
    world=1,
    local_rank=0,
    host="h0",
    device=torch.device("cpu"),
    host_leaders=(0,),
    host_ranks=(0,),
)


def marker(step: int = 0) -> CheckpointManifest:
    return CheckpointManifest(
        run_id="demo-7f3a", attempt=1, step=step, world_size=1, created_at=0.0, files=(), model={"dim": 8}
    )


def place_at(folder: Path) -> Place:
    store = LocalStore(folder)
    folder.mkdir(exist_ok=True)
    return Place(store=store, desk=store, shared=True)


def writer(place: Place, keep: int = 3, run_id: str = "demo-7f3a", start: int = 0) -> Writer:
    return Writer(
        session=ALONE,
        place=place,
        template=replace(marker(), run_id=run_id),
        start=start,
        retention=Retention(keep=keep),
        extra_files={"tokenizer.json": b"{}"},
        say=print,
    )


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"model.w": torch.full((4, 4), value), "optimizer.steps": torch.tensor(3.0)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Two ranks, eight steps, checkpoints at 4 and 8."""
    base = tmp_path_factory.mktemp("trained")
    cluster = Cluster(base=base, corpus=make_corpus(base / "corpus"), ranks=(2,))
    cluster.train(RECIPE)
    return cluster


def copied(trained: Cluster, base: Path) -> Cluster:
    cluster = replace(trained, base=base, checkpoint_uri=str(base / "place"), attempt=2)
    shutil.copytree(trained.checkpoints(), cluster.checkpoints())
    return cluster


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    """Every tensor, bit by bit, and the tokenizer's file beside it."""
    place = place_at(tmp_path / "place")
    saved = writer(place).write(7, {"model.w": torch.randn(3, 5), "optimizer.steps": torch.tensor(7.0)})
    found = find_latest(ALONE, place)
    assert found is not None
    assert found.step == 7
    assert (tmp_path / "place/step-00000007/tokenizer.json").read_bytes() == b"{}"
    assert saved.bytes == sum(entry.size for entry in found.manifest.files)
    into = {"model.w": torch.zeros(3, 5), "optimizer.steps": torch.tensor(0.0)}
    restore(ALONE, place, found, into, ALONE.device)
    assert into["optimizer.steps"].item() == 7.0
    assert into["model.w"].abs().sum() > 0


def test_a_remote_store_holds_the_same(tmp_path: Path) -> None:
    """Through an fsspec URL: uploaded, committed last, pruned, fetched and verified."""
    store = open_store(f"memory://checkpoints-{tmp_path.name}")
    place = Place(store=store, desk=LocalStore(tmp_path / "desk"), shared=True)
    for step in (1, 2, 3):
        writer(place, keep=2).write(step, tensors(step))
    assert committed_steps(store) == [2, 3]
    assert not any(file.path.startswith("step-00000001") for file in store.list())
    found = find_latest(ALONE, place)
    assert found is not None
    into = tensors(0.0)
    restore(ALONE, place, found, into, ALONE.device)
    assert into["model.w"].eq(3.0).all()
    assert not any((tmp_path / "desk").iterdir()), "nothing stays on the desk"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    """keep=2 leaves two, and half-written folders of before go with the rest."""
    place = place_at(tmp_path / "place")
    (tmp_path / "place/step-00000001").mkdir()
    (tmp_path / "place/step-00000001/__0_0.distcp").write_bytes(b"half")
    for step in (2, 3, 4):
        writer(place, keep=2).write(step, tensors())
    assert sorted(path.name for path in (tmp_path / "place").iterdir()) == ["step-00000003", "step-00000004"]


def test_pruning_never_takes_the_last_one(tmp_path: Path) -> None:
    """Whatever keep says, the newest committed checkpoint stays."""
    place = place_at(tmp_path / "place")
    writer(place, keep=1).write(5, tensors())
    assert prune(place.store, Retention(keep=0), newest=5) == []
    assert committed_steps(place.store) == [5]


def test_a_folder_without_a_marker_is_no_checkpoint(tmp_path: Path) -> None:
    """A newer folder that lost its marker is overlooked, the one before it is used."""
    place = place_at(tmp_path / "place")
    for step in (1, 2):
        writer(place).write(step, tensors(step))
    (tmp_path / f"place/step-00000002/{COMMIT_MARKER}").unlink()
    found = find_latest(ALONE, place)
    assert found is not None
    assert found.step == 1


def test_publishing_over_a_dead_folder_replaces_it(tmp_path: Path) -> None:
    """An attempt that died between rename and marker does not block the step for ever."""
    store = LocalStore(tmp_path)
    (tmp_path / "step-00000003").mkdir()
    (tmp_path / "step-00000003/old").write_bytes(b"old")
    (tmp_path / ".tmp-x.part").mkdir()
    (tmp_path / ".tmp-x.part/new").write_bytes(b"new")
    publish(store, ".tmp-x.part", marker(3))
    assert sorted(path.name for path in (tmp_path / "step-00000003").iterdir()) == [COMMIT_MARKER, "new"]


def test_a_save_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """A disk that ends in the middle of a file: one clear error, the older checkpoint stays, no rest."""
    place = place_at(tmp_path / "place")
    writer(place).write(1, tensors())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(TransferError, match="could not be saved"):
            writer(place).write(2, {"model.w": torch.zeros(200, 200)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["step-00000001"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 800 kB: room for one checkpoint of the test model, not for two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.hosts
def test_a_disk_that_fills_up_ends_the_run_in_one_line(small_disk: Path, tmp_path: Path) -> None:
    """The second checkpoint does not fit: every rank says so and exits 1, the first one stays whole."""
    cluster = Cluster(
        base=tmp_path, corpus=make_corpus(tmp_path / "corpus"), ranks=(2,), checkpoint_uri=str(small_disk)
    )
    for code, _, err in cluster.start(RECIPE).results():
        assert code == 1
        assert "no space left" in err.lower()
        assert "Traceback" not in err
    assert [path.name for path in small_disk.iterdir()] == ["step-00000004"]
    assert cluster.committed() == ["step-00000004"]


def test_too_little_room_is_found_before_training(tmp_path: Path) -> None:
    """A checkpoint larger than the free space is refused with both numbers."""
    with pytest.raises(PreflightError, match=r"needs .* GB, .* free"):
        check_room(ALONE, place_at(tmp_path / "place"), 10**15)
    assert check_room(ALONE, place_at(tmp_path / "place"), 1) is None


def test_a_flipped_byte_is_refused_by_name(trained: Cluster, tmp_path: Path) -> None:
    """One bit in one file of the newest checkpoint: exit 93 on every rank, the file and the way out named."""
    cluster = copied(trained, tmp_path)
    path = cluster.checkpoints() / "step-00000008/__1_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for code, _, err in cluster.start(replace(RECIPE, steps=9)).results():
        assert code == 93
        assert err.startswith("error: ")
        assert "__1_0.distcp" in err
        assert "remove" in err
        assert "Traceback" not in err


def test_a_checkpoint_of_another_model_is_refused(trained: Cluster, tmp_path: Path) -> None:
    """Going on with other dimensions names the field and both values."""
    cluster = copied(trained, tmp_path)
    other = replace(RECIPE.model, overrides={**RECIPE.model.overrides, "ffn_dim": 48})
    for code, _, err in cluster.start(replace(RECIPE, model=other)).results():
        assert code == 93
        assert "ffn_dim 64 there, 48 here" in err


def test_resume_off_does_not_mix_two_trainings(trained: Cluster, tmp_path: Path) -> None:
    """`resume: false` into a folder with another run's checkpoints is refused, not pruned into one."""
    cluster = replace(copied(trained, tmp_path), ranks=(1,), attempt=1)
    ((code, _, err),) = cluster.start(replace(RECIPE, resume=False)).results()
    assert code == 93
    assert "resume is off" in err


def test_the_marker_is_enough_to_know_the_model(trained: Cluster) -> None:
    """COMMIT.json lists every file of the folder and carries model, recipe and tokenizer."""
    folder = trained.checkpoints() / "step-00000008"
    manifest = loads(CheckpointManifest, (folder / COMMIT_MARKER).read_text())
    listed = {entry.path for entry in manifest.files}
    assert listed == {path.name for path in folder.iterdir()} - {COMMIT_MARKER}
    assert manifest.model["layers"] == 2
    assert manifest.recipe["global_batch"] == 5
    assert manifest.data["tokenizer"] == "bytes"
    assert manifest.world_size == 2


def sample(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmctl.worker.sample", "--checkpoint", str(folder), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_pulled_folder_speaks_for_itself(trained: Cluster, tmp_path: Path) -> None:
    """Moved elsewhere, without run or data, a checkpoint goes on from a prompt; one seed, one text."""
    folder = tmp_path / "anywhere"
    shutil.copytree(trained.checkpoints() / "step-00000008", folder)
    first, again = (sample(folder, "--prompt", "import ", "--max-new", "8", "--seed", "1") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert first.stdout.startswith("import ")
    assert first.stdout == again.stdout


def test_sampling_refuses_what_is_not_whole(trained: Cluster, tmp_path: Path) -> None:
    """A changed file is an integrity failure (21) that names it; a folder without marker is none at all."""
    folder = tmp_path / "broken"
    shutil.copytree(trained.checkpoints() / "step-00000008", folder)
    (folder / ".metadata").write_bytes(b"x")
    broken = sample(folder)
    assert broken.returncode == 21
    assert ".metadata" in broken.stderr
    (folder / COMMIT_MARKER).unlink()
    assert "no committed checkpoint" in sample(folder).stderr


def test_a_missing_tensor_is_an_integrity_failure(tmp_path: Path) -> None:
    """A checkpoint that lacks a tensor of this model is refused with its name, not half loaded."""
    place = place_at(tmp_path / "place")
    writer(place).write(1, tensors())
    found = find_latest(ALONE, place)
    assert found is not None
    with pytest.raises(IntegrityError, match=r"model\.other"):
        restore(ALONE, place, found, {**tensors(), "model.other": torch.zeros(2)}, ALONE.device)


def test_metrics_name_each_committed_checkpoint(trained: Cluster) -> None:
    """The checkpoint lines carry step, size and place, for `status` and `stop`."""
    lines = trained.lines("checkpoint")
    assert [line["step"] for line in lines] == [4, 8]
    assert all(line["bytes"] > 0 and line["uri"].endswith(f"step-{line['step']:08d}") for line in lines)
    assert json.dumps(lines)


def test_two_runs_in_one_place_are_told_apart(tmp_path: Path) -> None:
    """A checkpoint that came since this run began, and is not its own, is another run's at the same time: it
    stays as it is, and this run says so. What lay there at the start is what it goes on from."""
    place = place_at(tmp_path / "place")
    first, second = writer(place), writer(place, run_id="other-1a2b")
    first.write(10, tensors())
    for step in (10, 20):
        with pytest.raises(ConfigError, match="demo-7f3a saves there, too: checkpoint 10"):
            second.write(step, tensors(2.0))
    first.write(20, tensors())
    assert [read_marker(place.store, step).run_id for step in (10, 20)] == ["demo-7f3a"] * 2
    writer(place, run_id="later-9c8d", start=20).write(30, tensors())
    assert committed_steps(place.store) == [10, 20, 30]
