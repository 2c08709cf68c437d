"""Push, on every transport: only what changed travels, and what is visible is whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmctl.controller.transport.files import get_file, push_file, put_file
from llmctl.controller.transport.push import Push, PushResult, push_tree
from llmctl.controller.transport.pushmemory import PushMemory
from llmctl.controller.transport.tree import scan
from llmctl.errors import ConfigError, IntegrityError, TransferError
from llmctl.wire.layout import HostLayout
from tests.contract.transports import KINDS, Far, open_far


@dataclass(frozen=True, kw_only=True)
class Pushing:
    """A source folder, and a workdir on the host to push it to."""

    far: Far
    root: Path
    cache: Path

    @property
    def workdir(self) -> str:
        return f"{self.far.scratch}/work dir"

    def push(self, cache: Path | None = None) -> PushResult:
        memory = PushMemory(cache or self.cache)
        tree = lambda: scan(self.root, cache_dir=self.cache)  # noqa: E731
        return push_tree(self.far.transport, tree, workdir=self.workdir, memory=memory)

    def landed(self, result: PushResult) -> Path:
        """The tree on the host, as the test sees it."""
        return self.far.path(HostLayout(self.workdir).tree(result.tree_hash))

    def visible(self) -> list[str]:
        """Trees in the host's code folder, once nothing is in the making or being removed any more."""
        folder = self.far.path(f"{self.workdir}/code")
        if not folder.exists():
            return []
        deadline = time.monotonic() + 60
        while True:
            # One look decides: between two of them the next clone may begin.
            names = sorted(path.name for path in folder.iterdir())
            if not any(name.startswith(".new-") for name in names):
                return [name for name in names if not name.startswith(".spare-")]
            assert time.monotonic() < deadline, names
            time.sleep(0.05)


@pytest.fixture(params=KINDS)
def pushing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pushing]:
    connections, far = open_far(request.param, request, tmp_path)
    root = tmp_path / "root"
    (root / "pkg").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (root / "pkg" / f"{name}.py").write_text(f"{name} = 1\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    with connections:
        yield Pushing(far=far, root=root, cache=tmp_path / "cache")


def check_same(pushing: Pushing, result: PushResult) -> None:
    """What lies on the host is, path by path and byte by byte, what lies here."""
    tree = scan(pushing.root, cache_dir=pushing.cache)
    there = scan(pushing.landed(result), cache_dir=pushing.cache / "there")
    assert there.manifest == tree.manifest
    assert there.hash == result.tree_hash


def test_first_push_lands_whole_and_private(pushing: Pushing) -> None:
    """All files travel, land under the tree's hash, and nobody else may read them."""
    result = pushing.push()
    assert (result.sent_files, result.total_files, result.already) == (4, 4, False)
    assert result.sent_bytes > 0
    check_same(pushing, result)
    assert pushing.visible() == [result.tree_hash]
    for path in [pushing.far.path(pushing.workdir), *pushing.landed(result).rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_same_tree_travels_once(pushing: Pushing) -> None:
    """A second push sends nothing; so does one from a machine that remembers nothing."""
    first = pushing.push()
    for again in (pushing.push(), pushing.push(cache=pushing.cache / "other")):
        assert again.already
        assert (again.sent_files, again.sent_bytes, again.tree_hash) == (0, 0, first.tree_hash)
    assert pushing.visible() == [first.tree_hash]


def test_one_changed_file_sends_one_file(pushing: Pushing) -> None:
    """Only the change travels; the old tree stays as it was (never written through a hard link)."""
    first = pushing.push()
    (pushing.root / "pkg/a.py").write_text("a = 2\n")
    second = pushing.push()
    assert (second.sent_files, second.already) == (1, False)
    check_same(pushing, second)
    assert (pushing.landed(first) / "pkg/a.py").read_text() == "a = 1\n"
    assert pushing.visible() == sorted([first.tree_hash, second.tree_hash])


def test_deletions_and_a_file_that_becomes_a_folder(pushing: Pushing) -> None:
    """Deleted files and folders are gone; file and folder may change places, links too."""
    pushing.push()
    (pushing.root / "pkg/a.py").unlink()
    (pushing.root / "run.sh").unlink()
    (pushing.root / "run.sh").mkdir()
    (pushing.root / "run.sh/inside").write_text("x")
    check_same(pushing, pushing.push())
    shutil.rmtree(pushing.root / "pkg")
    (pushing.root / "pkg").symlink_to("run.sh")
    result = pushing.push()
    check_same(pushing, result)
    (pushing.root / "pkg").unlink()
    (pushing.root / "pkg").mkdir()
    (pushing.root / "pkg/new").write_text("x")
    check_same(pushing, pushing.push())


def test_spare_clone_is_no_backdoor(pushing: Pushing) -> None:
    """Pushes that start from a spare clone, or find it half gone, change no tree that is there already."""
    results = []
    for number in range(4):
        (pushing.root / "pkg/a.py").write_text(f"a = {number}\n")
        results.append(pushing.push())
        assert pushing.visible() == sorted(r.tree_hash for r in results)
    for number, result in enumerate(results):
        assert (pushing.landed(result) / "pkg/a.py").read_text() == f"a = {number}\n"
    spare = pushing.far.path(f"{pushing.workdir}/code/.spare-{results[-1].tree_hash}")
    deadline = time.monotonic() + 20
    while not spare.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    shutil.rmtree(spare)
    (pushing.root / "pkg/a.py").write_text("a = 9\n")
    check_same(pushing, pushing.push())


def test_exec_bit_alone_is_a_change(pushing: Pushing) -> None:
    """A file that only became executable is sent again."""
    pushing.push()
    (pushing.root / "pkg/a.py").chmod(0o755)
    result = pushing.push()
    assert result.sent_files == 1
    check_same(pushing, result)


def test_odd_names_survive(pushing: Pushing) -> None:
    """Links, spaces, newlines, leading dashes, unicode, no UTF-8, long names: sent, changed and deleted."""
    names = [
        "with space",
        "new\nline",
        "-rf",
        "--help",
        "é ü",
        "*",
        "n" * 200,
        "d/" * 40 + "deep",
        os.fsdecode(b"\xe9"),
    ]
    for name in names:
        path = pushing.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    (pushing.root / "link").symlink_to("pkg/a.py")
    (pushing.root / "dangling").symlink_to("nowhere")
    check_same(pushing, pushing.push())
    for name in names:
        (pushing.root / name).write_text("22")
    check_same(pushing, pushing.push())
    for name in names:
        (pushing.root / name).unlink()
    result = pushing.push()
    assert result.sent_files == 0
    check_same(pushing, result)


def test_ten_thousand_files(pushing: Pushing) -> None:
    """Many files, pushed cold and then with one change."""
    for number in range(10_000):
        path = pushing.root / f"d{number // 200}" / f"f{number}"
        if number % 200 == 0:
            path.parent.mkdir()
        path.write_text(str(number))
    assert pushing.push().sent_files == 10_004
    (pushing.root / "d7/f1400").write_text("changed")
    result = pushing.push()
    assert result.sent_files == 1
    check_same(pushing, result)


def test_large_file_streams(pushing: Pushing) -> None:
    """30 MB that don't compress arrive whole, and progress adds up to what was sent."""
    (pushing.root / "weights").write_bytes(os.urandom(30 << 20))
    seen: list[int] = []
    with Push(lambda: scan(pushing.root, cache_dir=pushing.cache), PushMemory(pushing.cache)) as push:
        result = push.to(pushing.far.transport, workdir=pushing.workdir, progress=seen.append)
    assert sum(seen) == result.sent_bytes > 30 << 20
    check_same(pushing, result)


def test_empty_tree(pushing: Pushing) -> None:
    """A folder without files is a tree too."""
    pushing.push()
    shutil.rmtree(pushing.root)
    pushing.root.mkdir()
    result = pushing.push()
    assert result.total_files == 0
    check_same(pushing, result)


def test_lost_base_is_no_error(pushing: Pushing) -> None:
    """The remembered tree was cleaned away on the host: everything is sent again."""
    first = pushing.push()
    shutil.rmtree(pushing.landed(first))
    (pushing.root / "pkg/a.py").write_text("a = 2\n")
    result = pushing.push()
    assert result.sent_files == 4
    check_same(pushing, result)


def test_other_base_is_found(pushing: Pushing) -> None:
    """Of the trees that the host still has, one that we know serves as base."""
    first = pushing.push()
    (pushing.root / "pkg/a.py").write_text("a = 2\n")
    second = pushing.push()
    shutil.rmtree(pushing.landed(second))
    (pushing.root / "pkg/b.py").write_text("b = 2\n")
    result = pushing.push()
    assert result.sent_files == 2
    check_same(pushing, result)
    assert pushing.visible() == sorted([first.tree_hash, result.tree_hash])


def test_two_controllers_at_once(pushing: Pushing) -> None:
    """Pushing the same tree from two controllers at the same time succeeds twice."""
    (pushing.root / "big").write_bytes(os.urandom(4 << 20))
    results: list[PushResult] = []

    def one(number: int) -> None:
        results.append(pushing.push(cache=pushing.cache / str(number)))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len({r.tree_hash for r in results}) == 1
    check_same(pushing, results[0])
    assert pushing.visible() == [results[0].tree_hash]


def test_compressed_once_for_many(pushing: Pushing, tmp_path: Path) -> None:
    """One Push serves several targets with the same bytes."""
    (pushing.root / "big").write_bytes(os.urandom(1 << 20))
    with Push(lambda: scan(pushing.root, cache_dir=pushing.cache), PushMemory(pushing.cache)) as push:
        results = [push.to(pushing.far.transport, workdir=f"{pushing.far.scratch}/w{n}") for n in range(3)]
        assert len(push._payloads._spools) == 1
    assert len({r.sent_bytes for r in results}) == 1


def test_failed_scan_is_told_and_leaves_nothing(pushing: Pushing) -> None:
    """A link out of the tree stops the push before anything is visible."""
    (pushing.root / "bad").symlink_to("/etc")
    with pytest.raises(ConfigError, match="bad"):
        pushing.push()
    assert pushing.visible() == []


def test_file_that_changes_meanwhile(pushing: Pushing) -> None:
    """Content that is no longer what was scanned is never sent under the tree's hash."""
    tree = scan(pushing.root, cache_dir=pushing.cache)
    (pushing.root / "pkg/a.py").write_text("a = 9\n")
    with pytest.raises(IntegrityError, match=r"a\.py changed"):
        push_tree(pushing.far.transport, tree, workdir=pushing.workdir, memory=PushMemory(pushing.cache))
    assert pushing.visible() == []


def test_stale_rests_are_removed(pushing: Pushing) -> None:
    """What a dead push left more than a day ago goes with the next one; a young one stays."""
    code = pushing.far.path(f"{pushing.workdir}/code")
    for name in (".new-old", ".new-young"):
        (code / name).mkdir(parents=True)
    os.utime(code / ".new-old", (time.time() - 100_000,) * 2)
    pushing.push()
    deadline = time.monotonic() + 20
    while (code / ".new-old").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (code / ".new-young").exists()
    assert not (code / ".new-old").exists()


def test_workdir_that_can_not_be(pushing: Pushing) -> None:
    """A workdir below a file is an error with the host's own reason."""
    pushing.far.path(pushing.workdir).write_text("a file")
    with pytest.raises(TransferError) as caught:
        pushing.push()
    assert (caught.value.host, caught.value.stage) == ("far", "push")
    assert "mkdir" in caught.value.message


def test_push_file(pushing: Pushing) -> None:
    """A file's bytes and mode arrive, its folder is made private, and it replaces the old one whole."""
    dest = f"{pushing.far.scratch}/new dir/-x/spec.json"
    for data in (b"one", b"", os.urandom(3 << 20)):
        push_file(pushing.far.transport, data, dest, mode=0o640, deadline_s=60)
        file = pushing.far.path(dest)
        assert (file.read_bytes(), file.stat().st_mode & 0o777) == (data, 0o640)
        assert [p.name for p in file.parent.iterdir()] == ["spec.json"]
    assert pushing.far.path(f"{pushing.far.scratch}/new dir").stat().st_mode & 0o777 == 0o700


def test_push_file_below_home(pushing: Pushing) -> None:
    """`~/` is the host's home."""
    push_file(pushing.far.transport, b"x", "~/.llmctl-test/file")
    shown = pushing.far.transport.run(["sh", "-c", "cat ~/.llmctl-test/file"], deadline_s=20, stage="test")
    assert shown.stdout == b"x"


def test_push_file_over_a_folder_is_refused(pushing: Pushing) -> None:
    """A folder in the way is an error, not a file inside of it."""
    with pytest.raises(TransferError, match="is a directory"):
        push_file(pushing.far.transport, b"x", pushing.far.scratch)


def test_put_and_get_a_big_file(pushing: Pushing, tmp_path: Path) -> None:
    """40 MB there and back are the same bytes; the size is returned."""
    source, back = tmp_path / "source", tmp_path / "deep/back"
    source.write_bytes(os.urandom(40 << 20))
    dest = f"{pushing.far.scratch}/big"
    assert put_file(pushing.far.transport, source, dest) == 40 << 20
    assert get_file(pushing.far.transport, dest, back) == 40 << 20
    assert subprocess.run(["cmp", source, back], check=False).returncode == 0


def test_get_of_a_missing_file_keeps_the_old_one(pushing: Pushing, tmp_path: Path) -> None:
    """No such file: the reason of the host, and what was here is still here."""
    (tmp_path / "old").write_text("old")
    with pytest.raises(TransferError, match="no file"):
        get_file(pushing.far.transport, f"{pushing.far.scratch}/nope", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "old"
