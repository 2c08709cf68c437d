"""Real stores behind a line that is slow, then dead: what moves is waited for, what stalls is not."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from llmctl.errors import DeadlineError
from llmctl.storage.files import Store, open_store
from tests.lab import hdfs as hdfs_lab
from tests.lab.hdfs import Hdfs
from tests.lab.slowline import SlowLine

pytestmark = pytest.mark.stores

DEADLINE_S = 6.0
SIZE = 4 << 20
RATE = SIZE / (2 * DEADLINE_S)
"""Bytes per second: a file takes twice as long as a silent call may."""


@contextmanager
def ceph_behind(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, SlowLine]]:
    ceph = request.getfixturevalue("ceph")
    place = urlsplit(ceph.http)
    with SlowLine.to((str(place.hostname), int(place.port or 0))) as line:
        assert isinstance(line, SlowLine)
        environment = {**ceph.environment(), "AWS_ENDPOINT_URL": f"http://127.0.0.1:{line.port}"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{ceph.bucket}", line


@contextmanager
def hdfs_behind(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, SlowLine]]:
    if missing := hdfs_lab.missing():
        pytest.skip(f"no HDFS: {missing}")
    with (
        Hdfs.up(data_host="127.0.0.2") as hdfs,
        SlowLine.to(("127.0.0.2", hdfs.data_port), port=hdfs.data_port) as line,
    ):
        assert isinstance(line, SlowLine)
        yield f"hdfs://{hdfs.rpc}", line


@pytest.mark.parametrize("behind", [ceph_behind, hdfs_behind])
def test_slow_is_not_stalled(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    behind: type[Iterator[tuple[str, SlowLine]]],
) -> None:
    """A file comes and goes over a line that needs twice the deadline for it; once the line is dead, both end
    in a DeadlineError, and neither leaves a half of the file."""
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(secrets.token_bytes(SIZE))
    with behind(request, monkeypatch) as (uri, line):  # type: ignore[attr-defined]
        store: Store = open_store(f"{uri}/{secrets.token_hex(6)}", deadline_s=DEADLINE_S)
        store.write_bytes("warm", b"x")  # first writes make pools and connections
        line.rate = RATE
        began = time.monotonic()
        entry = store.put_file(source, "a")
        assert store.get_file("a", back) == entry
        assert time.monotonic() - began > 2 * DEADLINE_S  # the line was as slow as it was meant to be
        assert back.read_bytes() == source.read_bytes()
        back.unlink()
        line.rate = 0
        for move in (lambda: store.get_file("a", back), lambda: store.put_file(source, "b")):
            with pytest.raises(DeadlineError):
                move()
        assert list(tmp_path.iterdir()) == [source]
