"""A push that goes wrong on a real host: the true reason, nothing visible, and the next one works."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmctl.controller.config.types import Host
from llmctl.controller.transport.base import Transport
from llmctl.controller.transport.files import push_file
from llmctl.controller.transport.pool import Connections
from llmctl.controller.transport.push import Push, PushResult, push_tree
from llmctl.controller.transport.pushmemory import PushMemory
from llmctl.controller.transport.tree import scan
from llmctl.errors import DeadlineError, HostUnreachableError, TransferError
from tests.lab.hosts import Lab

pytestmark = pytest.mark.hosts
A = Host(name="a", addr="node0")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """40 MB that don't compress, and a few small files with odd names."""
    root = tmp_path / "root"
    (root / "pkg").mkdir(parents=True)
    (root / "pkg/a.py").write_text("a = 1\n")
    (root / "new\nline").write_text("x")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("pkg/a.py")
    (root / "weights").write_bytes(os.urandom(40 << 20))
    return root


@pytest.fixture
def transport(in_lab: Lab) -> Iterator[Transport]:
    with Connections([A]) as connections:
        yield connections.get("a")


@pytest.fixture
def workdir(transport: Transport) -> str:
    return transport.run(["mktemp", "-d"], deadline_s=20, stage="test").stdout.decode().strip()


def push(transport: Transport, root: Path, workdir: str, cache: Path) -> PushResult:
    tree = lambda: scan(root, cache_dir=cache)  # noqa: E731
    return push_tree(transport, tree, workdir=workdir, memory=PushMemory(cache))


def names(lab: Lab, workdir: str) -> list[str]:
    """What lies below code/, seen beside SSH; spare clones apart."""
    shown = lab.on_host("node0", ["ls", "-A", f"{workdir}/code"], capture_output=True, text=True, check=True)
    return sorted(name for name in shown.stdout.split() if not name.startswith(".spare-"))


def await_names(lab: Lab, workdir: str, expected: list[str]) -> None:
    deadline = time.monotonic() + 60
    # One look decides: between two of them a clone for the next push may begin.
    while (seen := names(lab, workdir)) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert seen == expected


def await_no_receiver(lab: Lab, workdir: str) -> None:
    """It removes its folder first and ends just after. Others, of a test with a partition, may stay."""
    deadline = time.monotonic() + 60
    while True:
        left = lab.on_host("node0", ["pgrep", "-f", workdir], capture_output=True, text=True).stdout
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert left == ""


@contextmanager
def small_disk(lab: Lab, folder: str, size: str) -> Iterator[None]:
    """A file system of that size on node0's folder for a while."""
    lab.on_host("node0", ["mount", "-t", "tmpfs", "-o", f"size={size}", "small", folder], check=True)
    try:
        yield
    finally:
        lab.on_host("node0", ["umount", "-l", folder], check=True)


def test_full_disk(in_lab: Lab, transport: Transport, root: Path, workdir: str, tmp_path: Path) -> None:
    """A full disk is named as such; nothing is left, and with room the push works."""
    with small_disk(in_lab, workdir, "8m"):
        with pytest.raises(TransferError) as caught:
            push(transport, root, workdir, tmp_path / "cache")
        assert caught.value.line() == "a: push: No space left on device"
        assert caught.value.hint
        await_names(in_lab, workdir, [])
        in_lab.on_host("node0", ["mount", "-o", "remount,size=100m", workdir], check=True)
        result = push(transport, root, workdir, tmp_path / "cache")
        await_names(in_lab, workdir, [result.tree_hash])


def test_full_disk_for_a_file(in_lab: Lab, transport: Transport, workdir: str) -> None:
    """A single file on a full disk: the reason, and the old content stays."""
    show = ["sh", "-c", f"ls -A {workdir}; cat {workdir}/spec.json"]
    with small_disk(in_lab, workdir, "1m"):
        push_file(transport, b"old", f"{workdir}/spec.json")
        with pytest.raises(TransferError, match="No space left"):
            push_file(transport, bytes(2 << 20), f"{workdir}/spec.json")
        left = in_lab.on_host("node0", show, capture_output=True)
    assert left.stdout == b"spec.json\nold"


def test_connection_cut_in_the_middle(
    in_lab: Lab, transport: Transport, root: Path, workdir: str, tmp_path: Path
) -> None:
    """sshd killed while the tree travels: unreachable, nothing visible, no process left; then it works."""
    argv = ["sh", "-c", "ps -o ppid= -p $PPID"]
    server = transport.run(argv, deadline_s=20, stage="test").stdout.decode().strip()
    with cut_when_under_way(in_lab, workdir, ["kill", "-9", server]), pytest.raises(HostUnreachableError):
        push(transport, root, workdir, tmp_path / "cache")
    await_names(in_lab, workdir, [])
    await_no_receiver(in_lab, workdir)
    with Connections([A]) as connections:
        result = push(connections.get("a"), root, workdir, tmp_path / "cache")
    await_names(in_lab, workdir, [result.tree_hash])


@contextmanager
def cut_when_under_way(lab: Lab, workdir: str, command: list[str]) -> Iterator[None]:
    """Run `command` on the host once the first bytes of the big file are there."""

    def watch() -> None:
        script = f'until [ -s {workdir}/code/.new-*/weights ]; do :; done; exec "$@"'
        lab.on_host("node0", ["timeout", "30", "sh", "-c", script, "sh", *command])

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


def test_partition_in_the_middle(
    in_lab: Lab,
    transport: Transport,
    root: Path,
    workdir: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pulled cable ends the push at its stall limit; no tree is visible on the host."""
    monkeypatch.setattr("llmctl.controller.transport.push._STALL_S", 2.0)
    in_lab.on_host("node0", ["mkdir", "-p", f"{workdir}/code"], check=True)
    tree = scan(root, cache_dir=tmp_path)
    sent = 0

    def cut(count: int) -> None:
        nonlocal sent
        sent += count
        if sent > 4 << 20:
            in_lab.partition("node0")

    with (
        Push(tree, PushMemory(tmp_path / "cache")) as pushing,
        pytest.raises((DeadlineError, HostUnreachableError)),
    ):
        pushing.to(transport, workdir=workdir, progress=cut)
    assert all(name.startswith(".new-") for name in names(in_lab, workdir))


@contextmanager
def without(lab: Lab, *tools: str) -> Iterator[None]:
    """The host as one that never had these programs."""
    script = 'for t in "$@"; do p=$(command -v $t) && mv "$p" "$p.away" && echo "$p"; done'
    moved = lab.on_host(
        "node0", ["sh", "-c", script, "sh", *tools], capture_output=True, text=True, check=True
    )
    paths = moved.stdout.split()
    assert len(paths) == len(tools)
    try:
        yield
    finally:
        for path in paths:
            lab.on_host("node0", ["mv", f"{path}.away", path], check=True)


@pytest.mark.parametrize("tools", [("zstd",), ("tar",), ("zstd", "gzip")], ids="+".join)
def test_hosts_with_fewer_tools(
    in_lab: Lab, transport: Transport, root: Path, workdir: str, tmp_path: Path, tools: tuple[str, ...]
) -> None:
    """Without zstd or GNU tar the same tree lands, changed and shrunk trees too."""
    with without(in_lab, *tools):
        push(transport, root, workdir, tmp_path / "cache")
        (root / "pkg/a.py").write_text("a = 2\n")
        (root / "new\nline").unlink()
        (root / "run.sh").unlink()
        (root / "run.sh").mkdir()
        (root / "run.sh/x").write_text("x")
        result = push(transport, root, workdir, tmp_path / "cache")
    assert result.sent_files == 2
    landed = in_lab.path("node0", f"{workdir}/code/{result.tree_hash}")
    assert scan(landed, cache_dir=tmp_path / "there").hash == result.tree_hash


def test_tool_that_vanished_since_the_last_push(
    in_lab: Lab, transport: Transport, root: Path, workdir: str, tmp_path: Path
) -> None:
    """What was remembered of the host is only a guess: a push that it misleads is done again."""
    before = push(transport, root, workdir, tmp_path / "cache")
    (root / "pkg/a.py").write_text("a = 3\n")
    with without(in_lab, "zstd"):
        result = push(transport, root, workdir, tmp_path / "cache")
    await_names(in_lab, workdir, sorted([before.tree_hash, result.tree_hash]))
    landed = in_lab.path("node0", f"{workdir}/code/{result.tree_hash}")
    assert scan(landed, cache_dir=tmp_path / "there").hash == result.tree_hash


def test_no_way_to_unpack(
    in_lab: Lab, transport: Transport, root: Path, workdir: str, tmp_path: Path
) -> None:
    """Neither tar nor Python: said so before anything is sent."""
    tree, memory = scan(root, cache_dir=tmp_path), PushMemory(tmp_path / "cache")
    error = pytest.raises(TransferError, match="neither GNU tar")
    with without(in_lab, "tar"), Push(tree, memory) as pushing, error:
        pushing.to(transport, workdir=workdir, python="no-such-python")


def test_user_without_rights(in_lab: Lab, root: Path, tmp_path: Path) -> None:
    """A workdir that the user may not write to: permission denied, and what to set."""
    with Connections([Host(name="a", addr="node0", user="trainer")]) as connections:
        with pytest.raises(TransferError, match="Permission denied") as caught:
            push(connections.get("a"), root, "/srv/llmctl", tmp_path / "cache")
        assert "workdir" in (caught.value.hint or "")
        result = push(connections.get("a"), root, "~/.llmctl", tmp_path / "cache")
    assert in_lab.path("node0", f"/home/trainer/.llmctl/code/{result.tree_hash}/pkg/a.py").exists()
