"""What `clean` may remove, decided on real files: age, use, and what it doesn't understand."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from llmctl.node.clean import clean
from llmctl.wire.records import CleanReport, CleanRequest

WEEK = 7 * 86400.0


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name in ("code", "agent", "cache", "runs"):
        (tmp_path / name).mkdir()
    return tmp_path


def aged(path: Path, seconds: float = 2 * WEEK) -> Path:
    then = time.time() - seconds
    for found in (*path.rglob("*"), path):
        os.utime(found, (then, then), follow_symlinks=False)
    return path


def tree(work: Path, name: str, *, seconds: float = 2 * WEEK) -> Path:
    folder = work / "code" / name
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/file").write_bytes(b"x" * 5000)
    (folder / "link").symlink_to("/nowhere")
    return aged(folder, seconds)


def swept(work: Path, **request: object) -> CleanReport:
    return clean(str(work), CleanRequest(**{"older_than_s": WEEK, **request}))  # type: ignore[arg-type]


def test_only_what_is_old_goes(work: Path) -> None:
    """Two weeks is older than one; a day is not."""
    old, new = tree(work, "a" * 64), tree(work, "b" * 64, seconds=86400)
    report = swept(work)
    assert [item.name for item in report.items] == [old.name]
    assert report.items[0].bytes >= 5000
    assert not old.exists()
    assert new.exists()


def test_a_dry_run_removes_nothing(work: Path) -> None:
    """The same list, and everything is still there."""
    old = tree(work, "a" * 64)
    assert [item.name for item in swept(work, dry_run=True).items] == [old.name]
    assert (old / "sub/file").exists()


def test_what_was_just_pushed_waits_for_its_run(work: Path) -> None:
    """Even `--older-than 0s` leaves a tree that a run may be about to start from."""
    fresh = tree(work, "a" * 64, seconds=60)
    growing = tree(work, ".new-123")
    assert swept(work, older_than_s=0.0).items == ()
    assert fresh.exists()
    assert growing.exists(), "a push in progress is its own business"


def test_the_asking_agent_stays(work: Path) -> None:
    """The archive that is running this very command is not removed below itself."""
    mine, other = work / "agent" / ("a" * 64 + ".pyz"), work / "agent" / ("b" * 64 + ".pyz")
    for path in (mine, other):
        path.write_bytes(b"z")
        aged(path)
    assert [item.name for item in swept(work, keep_agent="a" * 64).items] == [other.name]


def test_a_run_that_cannot_be_read_protects_every_tree(work: Path) -> None:
    """Its node.json is missing: it may be starting, from any of them."""
    tree(work, "a" * 64)
    (work / "runs/demo-7f3a").mkdir()
    report = swept(work)
    assert report.items == ()
    assert report.live == ("demo-7f3a",)


def test_cached_data_is_as_old_as_its_newest_file(work: Path) -> None:
    """A folder's own time says nothing about the files in it."""
    folder = work / "cache/corpus"
    folder.mkdir()
    (folder / "shard").write_bytes(b"s")
    aged(folder)
    (folder / "late").write_bytes(b"l")
    os.utime(folder, (0, 0))
    assert swept(work).items == ()
    aged(folder)
    assert [item.kind for item in swept(work).items] == ["cache"]


def test_folders_without_the_write_bit_are_no_obstacle(work: Path) -> None:
    """Pushed trees keep their modes."""
    old = tree(work, "a" * 64)
    (old / "sub").chmod(0o500)
    aged(old)
    assert swept(work).failed == ()
    assert list((work / "code").iterdir()) == []


def test_links_are_removed_not_followed(work: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a tree points to belongs to somebody else."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "precious").write_text("p")
    old = tree(work, "a" * 64)
    (old / "out").symlink_to(outside)
    aged(old)
    swept(work)
    assert (outside / "precious").read_text() == "p"


def test_an_empty_or_missing_workdir_is_fine(tmp_path: Path) -> None:
    """A host that never had a run has nothing to remove."""
    assert clean(str(tmp_path / "none"), CleanRequest(older_than_s=0.0)) == CleanReport()


def test_environments_and_wheels_go_by_age_and_links_stay(work: Path) -> None:
    """An environment's age is that of its ready.json; one that no young run uses goes, links stay."""
    old, new = "a" * 64, "b" * 64
    for name in (old, new):
        (work / "env" / name / "bin").mkdir(parents=True)
        (work / "env" / name / "ready.json").write_text("{}")
    (work / "env" / "by").mkdir()
    (work / "env" / "by" / "request").symlink_to(f"../{old}")
    (work / "wheels" / ("c" * 64)).mkdir(parents=True)
    (work / "wheels" / ("c" * 64) / "x.whl").write_bytes(b"x")
    aged(work / "env" / old)
    aged(work / "wheels")
    assert {(item.kind, item.name) for item in swept(work).items} == {("env", old), ("wheel", "c" * 64)}
    assert sorted(path.name for path in (work / "env").iterdir()) == [new, "by"]


def test_a_supervisor_that_lives_keeps_its_folder(work: Path) -> None:
    """The lock decides, not the age: a long run's supervisor may not have written for weeks."""
    folders = [work / "supervisor" / name for name in ("old-aaaa", "live-bbbb")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "lock").touch()
        aged(folder)
    with (folders[1] / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert [(item.kind, item.name) for item in swept(work).items] == [("supervisor", "old-aaaa")]
    assert [folder.exists() for folder in folders] == [False, True]
