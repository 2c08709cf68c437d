"""Servers of a real store killed or frozen in the middle of a transfer: an error in time, nothing torn."""

from __future__ import annotations

import gc
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from llmctl.errors import DeadlineError, LlmctlError, TransferError
from llmctl.storage.drivers import s3
from llmctl.storage.files import Store, open_store
from tests.contract.stores import store_uri
from tests.lab.ceph import Ceph
from tests.lab.daemons import Daemon
from tests.lab.hdfs import Hdfs

pytestmark = [pytest.mark.stores, pytest.mark.stores_fault]

SIZE = 24 << 20
DEADLINE_S = 4.0

CASES = [
    ("hdfs", "datanode", "kill9"),
    ("hdfs", "datanode", "freeze"),
    ("hdfs", "namenode", "kill9"),
    ("webhdfs", "datanode", "kill9"),
    ("webhdfs", "datanode", "freeze"),
    ("s3-http", "rgw", "kill9"),
    ("s3-http", "rgw", "kill9", "whole"),
    ("s3-http", "osd", "kill9", "whole"),
    ("s3-http", "osd", "kill9"),
    ("s3-https", "rgw", "kill9"),
    ("s3-https", "rgw", "freeze"),
]


class TrippingFile(type(Path())):  # type: ignore[misc]
    """A local file that does something once, after so many bytes of it were read."""

    trip: Callable[[], None]
    after = SIZE // 2

    def open(self, *args: Any, **kwargs: Any) -> Any:
        return _TrippingStream(str(self), self)


class _TrippingStream(FileIO):
    def __init__(self, name: str, owner: TrippingFile) -> None:
        super().__init__(name)
        self._owner = owner
        self._read = 0

    def read(self, size: int = -1, /) -> bytes:
        if self._read >= self._owner.after:
            self._owner.trip()
        data = super().read(size) or b""
        self._read += len(data)
        return data


@dataclass(frozen=True, kw_only=True)
class Victim:
    """A store, and the server of it that is hit."""

    store: Store
    uri: str
    lab: Hdfs | Ceph
    daemon: Daemon
    blow: str
    reads: int

    def hit(self) -> None:
        if self.daemon.alive:
            getattr(self.daemon, self.blow)()


@pytest.fixture(params=CASES, ids="-".join)
def victim(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Victim:
    kind, server, blow, *whole = request.param
    # A file of this size would go in one request, read twice; in parts it is read once.
    monkeypatch.setattr(s3, "WHOLE", 1 << 30 if whole else 0)
    uri = store_uri(request, kind, tmp_path, monkeypatch)
    lab = request.getfixturevalue("hdfs" if "hdfs" in kind else "ceph")
    store = open_store(uri, deadline_s=DEADLINE_S)
    return Victim(
        store=store, uri=uri, lab=lab, daemon=getattr(lab, server), blow=blow, reads=2 if whole else 1
    )


def test_a_put_that_loses_its_server(victim: Victim, tmp_path: Path) -> None:
    """A put whose server dies or freezes ends in an error in time; after the restart the old file is whole,
    the same put completes, and nothing unfinished is left."""
    old, new = secrets.token_bytes(SIZE), secrets.token_bytes(SIZE)
    store = open_store(victim.uri)  # only the put has little time: this machine may be slow
    store.write_bytes("a", old)
    (tmp_path / "new").write_bytes(new)
    source = TrippingFile(tmp_path / "new")
    source.trip = victim.hit
    source.after = SIZE * (victim.reads - 1) + SIZE // 2
    began = time.monotonic()
    with pytest.raises((TransferError, DeadlineError)) as caught:
        victim.store.put_file(source, "a")
    # The put, its clean-up, and what a machine under load may take; not the minutes that drivers wait.
    assert time.monotonic() - began < 60
    print(
        f"{victim.uri} {victim.daemon.name} {victim.blow}: {time.monotonic() - began:.1f} s: {caught.value}"
    )
    assert victim.uri in str(caught.value)
    # hdfs-native's own file object closes itself when collected, and never comes back from it.
    collecting = threading.Thread(target=gc.collect, daemon=True)
    collecting.start()
    collecting.join(30)
    assert not collecting.is_alive()
    victim.lab.restore()
    assert _patiently(lambda: store.read_bytes("a")) in (old, new)
    _patiently(lambda: store.put_file(Path(source), "a"))
    assert store.read_bytes("a") == new
    assert [file.path for file in store.list()] == ["a"]
    _patiently(lambda: store.cleanup(older_than_s=0))
    assert store.cleanup(older_than_s=0) == ()


def _patiently(function: Callable[[], Any]) -> Any:
    """The result, once the servers are through with their recovery."""
    end = time.monotonic() + 60
    while True:
        try:
            return function()
        except LlmctlError:
            if time.monotonic() > end:
                raise
