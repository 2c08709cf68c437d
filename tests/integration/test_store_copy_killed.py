"""A copy whose store, or whose own process, is killed: what is left is whole, and a rerun is short."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmctl.errors import DeadlineError, TransferError
from llmctl.storage.files import open_store
from llmctl.storage.transfer import Moved, copy_in
from tests.contract.stores import store_uri

pytestmark = [pytest.mark.stores, pytest.mark.stores_fault]

COUNT, SIZE = 6, 6 << 20

COPY = """
import sys
from pathlib import Path
from llmctl.storage.files import open_store
from llmctl.storage.transfer import copy_in
files = [(path, path.name) for path in sorted(Path(sys.argv[2]).iterdir())]
def told(moved):
    print(moved.entry.path, flush=True)
copy_in(open_store(sys.argv[1]), files, workers=2, progress=told)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number:02}").write_bytes(secrets.token_bytes(SIZE))
    return folder


@pytest.mark.parametrize(("kind", "server"), [("s3-http", "rgw"), ("s3-http", "osd"), ("hdfs", "datanode")])
def test_a_copy_goes_on_where_its_store_was_killed(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: Path,
    kind: str,
    server: str,
) -> None:
    """An error in time; after the restart the rerun sends only what is missing, and all of it is right."""
    uri = store_uri(request, kind, tmp_path, monkeypatch)
    lab = request.getfixturevalue("hdfs" if kind == "hdfs" else "ceph")
    files = [(path, path.name) for path in sorted(source.iterdir())]
    done: list[Moved] = []

    def told(moved: Moved) -> None:
        done.append(moved)
        if moved.files == 2:
            getattr(lab, server).kill9()

    began = time.monotonic()
    with pytest.raises((TransferError, DeadlineError)):
        copy_in(open_store(uri, deadline_s=4), files, workers=2, progress=told)
    assert time.monotonic() - began < 240  # 4 files, each with its tries twice; not for ever
    lab.restore()
    known = {moved.entry.path: moved.entry for moved in done}
    assert 2 <= len(known) < COUNT
    store = open_store(uri)
    again = copy_in(store, files, known=known)
    assert again.skipped == tuple(sorted(known))
    assert len(again.moved) == COUNT - len(known)
    for local, path in files:
        assert store.read_bytes(path) == local.read_bytes()


@pytest.mark.parametrize("kind", ["s3-http", "hdfs"])
def test_a_killed_writer_leaves_whole_files_or_none(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path, kind: str
) -> None:
    """kill -9 in the middle of a copy: every listed file is whole, a clean-up removes the rest."""
    uri = store_uri(request, kind, tmp_path, monkeypatch)
    with subprocess.Popen(
        [sys.executable, "-c", COPY, uri, str(source)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
        writer.communicate(timeout=60)
    store = open_store(uri)
    found = store.list()
    assert found
    for file in found:
        assert store.read_bytes(file.path) == (source / file.path).read_bytes()
    store.cleanup(older_than_s=-60)  # also what is as new as this second
    assert store.cleanup(older_than_s=-60) == ()
    assert [file.path for file in store.list()] == [file.path for file in found]
