"""Bytes that change on their way into a real store: noticed before the file has its name, or at once."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import pytest

from llmctl.errors import DeadlineError, IntegrityError, TransferError
from llmctl.storage.drivers import s3
from llmctl.storage.drivers.connect import connect
from llmctl.storage.files import Store, open_store
from llmctl.storage.hashing import file_entry
from llmctl.storage.remote import RemoteStore
from tests.contract.stores import store_uri
from tests.lab import hdfs as hdfs_lab
from tests.lab.ceph import Ceph
from tests.lab.flipper import MARK, Flipper
from tests.lab.hdfs import Hdfs

SIZES = {"small": 100_000, "whole": 20 << 20, "in parts": 20 << 20}
ENDLESS = 1 << 30


def marked(size: int) -> bytes:
    """Random bytes with many MARKs, so that one is never cut by every packet's end."""
    block = secrets.token_bytes(8192 - len(MARK)) + MARK
    return (block * (size // len(block) + 1))[:size]


@pytest.mark.stores
@pytest.mark.parametrize("size", SIZES)
def test_s3_refuses_a_body_that_changed(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    """One flipped byte of a request: the gateway refuses it, the old object stays, and a retry heals it."""
    place = urlsplit(ceph.http)
    data = marked(SIZES[size])
    monkeypatch.setattr(s3, "WHOLE", 0 if size == "in parts" else 64 << 20)
    (tmp_path / "new").write_bytes(data)
    with Flipper.to((str(place.hostname), int(place.port or 0))) as flipper:
        environment = {**ceph.environment(), "AWS_ENDPOINT_URL": f"http://127.0.0.1:{flipper.port}"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = open_store(f"s3://{ceph.bucket}/{secrets.token_hex(6)}", deadline_s=20)
        store.write_bytes("a", b"old")
        flipper.damages = ENDLESS
        with pytest.raises(TransferError, match=r"SHA256|[Dd]igest|checksum"):
            store.put_file(tmp_path / "new", "a")
        assert store.read_bytes("a") == b"old"
        flipper.damages = 1
        assert store.put_file(tmp_path / "new", "a") == file_entry(tmp_path / "new", "a")
        assert flipper.damages == 0
        assert store.read_bytes("a") == data


@pytest.fixture
def behind_a_flipper() -> Iterator[tuple[Store, Flipper]]:
    """An HDFS whose DataNode is only reached through a proxy."""
    if missing := hdfs_lab.missing():
        pytest.skip(f"no HDFS: {missing}")
    with (
        Hdfs.up(data_host="127.0.0.2") as hdfs,
        Flipper.to(("127.0.0.2", hdfs.data_port), port=hdfs.data_port) as flipper,
    ):
        yield open_store(f"hdfs://{hdfs.rpc}/{secrets.token_hex(6)}", deadline_s=20), flipper


@pytest.mark.stores
def test_hdfs_refuses_a_packet_that_changed(behind_a_flipper: tuple[Store, Flipper], tmp_path: Path) -> None:
    """One flipped byte on the way to a DataNode never becomes a file; the old one stays."""
    store, flipper = behind_a_flipper
    data = marked(3_000_000)
    (tmp_path / "new").write_bytes(data)
    store.write_bytes("a", b"old")
    flipper.damages = ENDLESS
    with pytest.raises((TransferError, DeadlineError)) as caught:
        store.put_file(tmp_path / "new", "a")
    print(caught.value)
    assert flipper.hits
    assert store.read_bytes("a") == b"old"
    assert [file.path for file in store.list()] == ["a"]
    flipper.damages = 0
    store.put_file(tmp_path / "new", "a")
    assert store.read_bytes("a") == data


class FlippingDriver:
    """A real driver, given other bytes than it was told to write."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def write(self, path: str, opened: Callable[[], BinaryIO], size: int) -> None:
        @contextmanager
        def damaged() -> Iterator[BinaryIO]:
            with opened() as source:
                yield io.BytesIO(source.read().replace(b"x", b"y", 1))

        self._driver.write(path, lambda: cast(BinaryIO, damaged()), size)


@pytest.mark.parametrize("kind", ["memory", pytest.param("webhdfs", marks=pytest.mark.stores)])
def test_what_a_store_does_not_check_is_read_back(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A byte that changed on the way is found before the file has its name; the old one stays."""
    uri = store_uri(request, kind, tmp_path, monkeypatch)
    driver, root = connect(uri)
    open_store(uri).write_bytes("a", b"old")
    store = RemoteStore(FlippingDriver(driver), root, uri, 30.0)
    data = b"-" * 3_000_000 + b"x" + b"-" * 100
    (tmp_path / "new").write_bytes(data)
    for put in (lambda: store.write_bytes("a", data), lambda: store.put_file(tmp_path / "new", "a")):
        with pytest.raises(IntegrityError, match="damaged within bytes 2097152-3000100"):
            put()
        assert store.read_bytes("a") == b"old"
    assert [file.path for file in store.list()] == ["a"]
