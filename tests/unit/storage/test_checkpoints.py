"""Which folders are checkpoints, which may go, and that the last good one never does."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import threading
import time
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.errors import IntegrityError
from llmctl.storage.checkpoints import (
    Checkpoint,
    State,
    committed_steps,
    findings,
    publish,
    remove,
    survey,
)
from llmctl.storage.files import Store, open_store
from llmctl.storage.findings import Finding
from llmctl.storage.local import LocalStore
from llmctl.storage.retention import (
    Retention,
    damaged_plan,
    plan,
    prune,
    remove_unchanged,
    verified_plan,
)
from llmctl.wire.manifests import COMMIT_MARKER, CheckpointManifest, FileEntry, checkpoint_name


def put(store: Store, step: int, content: bytes = b"weights") -> None:
    """A whole checkpoint of one file."""
    name = checkpoint_name(step)
    store.write_bytes(f"{name}/a", content)
    entry = FileEntry("a", len(content), hashlib.sha256(content).hexdigest())
    manifest = CheckpointManifest(
        run_id="demo-7f3a", attempt=1, step=step, world_size=2, created_at=time.time(), files=(entry,)
    )
    publish(store, None, manifest)


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return LocalStore(tmp_path / "store")
    return open_store(f"memory://checkpoints-{tmp_path.name}")


def states(store: Store) -> dict[int, State]:
    return {one.step: one.state for one in survey(store)}


def test_a_survey_tells_whole_ones_from_others(store: Store) -> None:
    """No marker, a marker that is no manifest, one that is of another step, a missing file, a short one."""
    for step in (1, 2, 3, 4, 5):
        put(store, step)
    store.delete(f"{checkpoint_name(1)}/{COMMIT_MARKER}")
    store.write_bytes(f"{checkpoint_name(2)}/{COMMIT_MARKER}", b"{}")
    store.delete(f"{checkpoint_name(3)}/a")
    store.write_bytes(f"{checkpoint_name(4)}/a", b"short")
    put(store, 6)
    marker = store.read_bytes(f"{checkpoint_name(6)}/{COMMIT_MARKER}")
    store.write_bytes(f"{checkpoint_name(7)}/a", b"weights")
    store.write_bytes(f"{checkpoint_name(7)}/{COMMIT_MARKER}", marker)
    found = {one.step: one for one in survey(store)}
    assert [one.state.value[0] for _, one in sorted(found.items())] == list("udddccd")
    assert found[3].problem == "a missing"
    assert found[4].problem == "a: 5 bytes, not 7"
    assert found[7].problem == "COMMIT.json is of step 6"


def test_a_checkpoints_own_folder_is_a_place_too(tmp_path: Path) -> None:
    """A folder that was copied anywhere, under any name, is the one checkpoint in it."""
    put(LocalStore(tmp_path), 12)
    (tmp_path / checkpoint_name(12)).rename(tmp_path / "anything")
    (one,) = survey(LocalStore(tmp_path / "anything"))
    assert (one.step, one.state, one.folder, one.files) == (12, State.COMMITTED, "", 1)
    assert one.manifest is not None
    assert findings(LocalStore(tmp_path / "anything"), "", one.manifest) == []


def test_what_is_being_written_is_shown(tmp_path: Path) -> None:
    """A temporary folder on a disk is an unfinished checkpoint, with who writes it."""
    folder = tmp_path / ".tmp-step-00000009-demo-7f3a-2.part"
    folder.mkdir()
    (folder / "x").write_bytes(b"123")
    (one,) = survey(LocalStore(tmp_path))
    assert (one.step, one.state, one.bytes) == (9, State.UNFINISHED, 3)
    assert one.problem == "written by demo-7f3a, attempt 2"


def test_every_finding_with_its_range(tmp_path: Path) -> None:
    """Two damaged files of three and one that is gone are all named, the flipped byte by its MiB."""
    store = LocalStore(tmp_path)
    content = os.urandom(3 << 20)
    entries = []
    for name in "abc":
        store.write_bytes(f"step-00000001/{name}", content)
        entries.append(_entry(tmp_path / "step-00000001" / name))
    manifest = CheckpointManifest(
        run_id="r", attempt=1, step=1, world_size=1, created_at=1.0, files=tuple(entries)
    )
    flipped = bytearray(content)
    flipped[(1 << 20) + 5] ^= 1
    store.write_bytes("step-00000001/a", bytes(flipped))
    store.delete("step-00000001/c")
    read: list[int] = []
    found = findings(store, "step-00000001", manifest, read.append)
    assert [one.path for one in found] == ["step-00000001/a", "step-00000001/c"]
    assert found[0].ranges == ((1 << 20, 2 << 20),)
    assert "damaged within bytes 1048576-2097151" in found[0].problem
    assert sum(read) == 2 * len(content)


def _entry(path: Path) -> FileEntry:
    from llmctl.storage.hashing import file_entry

    return file_entry(path, path.name)


def test_damaged_ones_do_not_push_out_good_ones(store: Store) -> None:
    """keep=2 with the newest two damaged keeps the two good ones before; what is older goes."""
    for step in (1, 2, 3, 4, 5):
        put(store, step)
    store.delete(f"{checkpoint_name(4)}/a")
    store.write_bytes(f"{checkpoint_name(5)}/{COMMIT_MARKER}", b"no manifest")
    assert prune(store, Retention(keep=2), newest=5) == [1, 4]
    assert {step for step, state in states(store).items() if state is State.COMMITTED} == {2, 3}


def test_nothing_goes_where_nothing_is_good(store: Store) -> None:
    """All damaged: a prune removes not one of them."""
    for step in (1, 2, 3):
        put(store, step)
        store.delete(f"{checkpoint_name(step)}/a")
    assert prune(store, Retention(keep=1), newest=3) == []
    assert committed_steps(store) == [1, 2, 3]


def test_milestones_stay_and_rests_go(store: Store) -> None:
    """keep_every keeps multiples for good; an unfinished folder that is a multiple is none."""
    for step in (10, 15, 20, 25, 30):
        put(store, step)
    store.write_bytes("step-00000005/a", b"half")
    store.write_bytes("step-00000040/a", b"another training's, later")
    assert prune(store, Retention(keep=1, keep_every=10), newest=30) == [5, 15, 25]
    assert committed_steps(store) == [10, 20, 30]
    assert states(store)[40] is State.UNFINISHED


def test_a_removal_that_is_cut_short_leaves_no_marker(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The marker is the first that goes, so that a reader never sees a checkpoint with holes."""
    put(store, 1)
    real = type(store).delete

    def cut(self: Store, prefix: str) -> None:
        if not prefix.endswith(COMMIT_MARKER):
            raise KeyboardInterrupt
        real(self, prefix)

    monkeypatch.setattr(type(store), "delete", cut)
    with pytest.raises(KeyboardInterrupt):
        remove(store, checkpoint_name(1))
    assert states(store) == {1: State.UNFINISHED}


def test_the_newest_that_stays_is_read_before_others_go(store: Store) -> None:
    """A flipped byte in it, sizes right: it counts as damaged, and the good one before it stays instead."""
    for step in (1, 2, 3):
        put(store, step)
    store.write_bytes(f"{checkpoint_name(3)}/a", b"wEights")
    pruning = verified_plan(store, survey(store), Retention(keep=1), unfinished_before=0.0)
    assert [one.step for one in pruning.stay] == [2]
    assert [one.step for one in pruning.go] == [1]
    assert [one.step for one in pruning.damaged] == [3]


def test_no_good_one_is_an_error_not_a_prune(store: Store) -> None:
    """All contents damaged, sizes right: refused, with what is wrong."""
    for step in (1, 2):
        put(store, step)
        store.write_bytes(f"{checkpoint_name(step)}/a", b"wEights")
    with pytest.raises(IntegrityError, match="not one checkpoint is good"):
        verified_plan(store, survey(store), Retention(keep=1), unfinished_before=0.0)


def test_only_damaged_ones_go_and_never_all(store: Store) -> None:
    """By marker, size, contents: each goes, newer than all good ones or not; without a good one none."""
    for step in (1, 2, 3, 4):
        put(store, step)
    store.delete(f"{checkpoint_name(1)}/a")
    store.write_bytes(f"{checkpoint_name(3)}/{COMMIT_MARKER}", b"no manifest")
    store.write_bytes(f"{checkpoint_name(4)}/a", b"wEights")
    store.write_bytes("step-00000009/a", b"being written")

    def verify(one: Checkpoint) -> list[Finding]:
        assert one.manifest is not None
        return findings(store, one.folder, one.manifest)

    pruning = damaged_plan(store, survey(store), verify)
    assert ([one.step for one in pruning.stay], [one.step for one in pruning.go]) == ([2], [1, 3, 4])
    assert [one.step for one in damaged_plan(store, survey(store)).go] == [1, 3]
    for one in pruning.go:
        assert remove_unchanged(store, one)
    assert states(store) == {2: State.COMMITTED, 9: State.UNFINISHED}
    store.write_bytes(f"{checkpoint_name(2)}/a", b"wEights")
    with pytest.raises(IntegrityError, match="not one checkpoint is good"):
        damaged_plan(store, survey(store), verify)


def test_one_that_was_saved_again_is_no_longer_damaged(store: Store) -> None:
    """Between look and removal a run may save the step anew: that stays; one that has gone is no error."""
    for step in (1, 2, 3):
        put(store, step)
    for step in (2, 3):
        store.delete(f"{checkpoint_name(step)}/a")
    two, three = damaged_plan(store, survey(store)).go
    put(store, 2)
    remove(store, checkpoint_name(3))
    assert not remove_unchanged(store, two)
    assert not remove_unchanged(store, three)
    assert states(store) == {1: State.COMMITTED, 2: State.COMMITTED}


@given(
    good=st.lists(
        st.tuples(st.integers(1, 60), st.sampled_from(State)), max_size=12, unique_by=lambda one: one[0]
    ),
    keep=st.integers(1, 4),
    keep_every=st.integers(0, 7),
)
def test_a_plan_never_loses_the_newest_good_one(
    good: list[tuple[int, State]], keep: int, keep_every: int
) -> None:
    """Whatever lies there: the newest good ones and the milestones stay, nothing both stays and goes, and
    no damaged one goes that is newer than all good ones."""
    found = [
        Checkpoint(step=step, folder=checkpoint_name(step), state=state, files=1, bytes=1, at=1.0)
        for step, state in sorted(good)
    ]
    pruning = plan(found, Retention(keep=keep, keep_every=keep_every), unfinished_before=0.5)
    whole = [one for one in found if one.state is State.COMMITTED]
    stay = set(pruning.stay)
    assert set(whole[-keep:]) <= stay <= set(whole)
    assert {one for one in whole if keep_every and one.step % keep_every == 0} <= stay
    assert not stay & set(pruning.go)
    assert set(whole) <= stay | set(pruning.go)
    newest = max((one.step for one in whole), default=0)
    assert all(one.state is State.COMMITTED or one.step < newest for one in pruning.go)
    later = dataclasses.replace(Retention(keep=keep), keep_every=keep_every)
    assert any(one.state is State.UNFINISHED for one in plan(found, later, unfinished_before=2.0).go) == any(
        one.state is State.UNFINISHED for one in found
    )


def test_ten_thousand_objects() -> None:
    """A store of 100 checkpoints of a hundred files is listed and pruned to what retention holds."""
    store, raw = open_store("memory://many-checkpoints"), fsspec.filesystem("memory")
    for step in range(1, 101):
        put(store, step)
        raw.pipe({f"/many-checkpoints/{checkpoint_name(step)}/more-{number}": b"" for number in range(98)})
    assert len(store.list()) == 10_000
    removed = prune(store, Retention(keep=3, keep_every=50), newest=100)
    assert removed == [step for step in range(1, 98) if step != 50]
    assert committed_steps(store) == [50, 98, 99, 100]


def test_looking_bears_that_a_writer_commits(tmp_path: Path) -> None:
    """Folders that get their final name, or go, while they are looked at are no error."""
    ended = threading.Event()

    def write() -> None:
        turn = 0
        while not ended.is_set():
            turn += 1
            writing, name = tmp_path / f".tmp-step-{turn % 9:08d}-r-1.part", tmp_path / f"step-{turn % 9:08d}"
            writing.mkdir()
            (writing / "0").write_bytes(b"x")
            shutil.rmtree(name, ignore_errors=True)
            writing.rename(name)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(150):
            folders = [one.folder for one in survey(LocalStore(tmp_path))]
            assert len(folders) == len(set(folders)), "a checkpoint is told twice"
    finally:
        ended.set()
        writer.join()
