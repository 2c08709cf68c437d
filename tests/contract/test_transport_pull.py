"""Pull, on every transport: one channel, offsets, checks, and no path out of the folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmctl.controller.transport.pull import PullItem, PullResult, pull
from llmctl.errors import IntegrityError, TransferError
from tests.contract.transports import KINDS, Far, open_far


@dataclass(frozen=True, kw_only=True)
class Pulling:
    """A folder on the host, and one here."""

    far: Far
    dest: Path

    def put(self, path: str, data: bytes) -> PullItem:
        """A file on the host, as an item to pull."""
        file = self.far.path(f"{self.far.scratch}/{path}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return PullItem(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def pull(self, *items: PullItem) -> PullResult:
        return pull(self.far.transport, self.far.scratch, items, self.dest)


@pytest.fixture(params=KINDS)
def pulling(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pulling]:
    connections, far = open_far(request.param, request, tmp_path)
    with connections:
        yield Pulling(far=far, dest=tmp_path / "dest")


def test_many_files_in_one_go(pulling: Pulling) -> None:
    """500 files, empty, odd-named and a large one, arrive as they are."""
    contents = {f"d{n % 7}/f{n}": os.urandom(n) for n in range(500)}
    contents |= {"é\n x/-rf": b"odd", "big": os.urandom(9 << 20)}
    items = [pulling.put(path, data) for path, data in contents.items()]
    result = pulling.pull(*items)
    assert (result.files, result.bytes) == (502, sum(map(len, contents.values())))
    for path, data in contents.items():
        assert (pulling.dest / path).read_bytes() == data


def test_a_log_goes_on_at_its_offset(pulling: Pulling) -> None:
    """Only the new bytes of a growing file travel, to its end."""
    pulling.put("log", b"first\n")
    assert pulling.pull(PullItem(path="log", size=6)).bytes == 6
    pulling.put("log", b"first\nsecond\n")
    assert pulling.pull(PullItem(path="log", size=13, offset=6)).bytes == 7
    assert (pulling.dest / "log").read_bytes() == b"first\nsecond\n"


def test_bytes_behind_the_asked_size_stay_there(pulling: Pulling) -> None:
    """A file that has grown since it was listed gives the listed bytes."""
    pulling.put("log", b"0123456789")
    assert pulling.pull(PullItem(path="log", size=4)).bytes == 4
    assert (pulling.dest / "log").read_bytes() == b"0123"


def test_wrong_content_is_refused(pulling: Pulling) -> None:
    """A file that is not what its hash says leaves the old one in place."""
    item = pulling.put("weights", b"good")
    pulling.pull(item)
    pulling.put("weights", b"evil")
    with pytest.raises(IntegrityError, match="sha256") as caught:
        pulling.pull(item)
    assert caught.value.host == "far"
    assert (pulling.dest / "weights").read_bytes() == b"good"
    assert [p.name for p in pulling.dest.iterdir()] == ["weights"]


def test_missing_and_short_files_do_not_stop_the_others(pulling: Pulling) -> None:
    """The error names the first that failed and counts the rest; what was there has been pulled."""
    short = pulling.put("short", b"12")
    good = pulling.put("z-good", b"good")
    with pytest.raises(TransferError, match=r"gone: No such file.*1 more"):
        pulling.pull(PullItem(path="gone", size=3), PullItem(path=short.path, size=9), good)
    assert [p.name for p in pulling.dest.iterdir()] == ["z-good"]


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../out"])
def test_paths_that_leave_are_refused(pulling: Pulling, path: str) -> None:
    """A listing that names a path outside is refused before anything is fetched."""
    good = pulling.put("good", b"x")
    with pytest.raises(IntegrityError, match="outside"):
        pulling.pull(good, PullItem(path=path, size=1))
    assert not pulling.dest.exists()


def test_link_in_the_way_is_refused(pulling: Pulling, tmp_path: Path) -> None:
    """A link below dest is never written through."""
    item = pulling.put("logs/a", b"x")
    pulling.dest.mkdir()
    (tmp_path / "outside").mkdir()
    (pulling.dest / "logs").symlink_to(tmp_path / "outside")
    with pytest.raises(IntegrityError):
        pulling.pull(item)
    assert list((tmp_path / "outside").iterdir()) == []


def test_no_python_there(pulling: Pulling) -> None:
    """A host without that python is an error with the reason."""
    item = pulling.put("a", b"x")
    with pytest.raises(TransferError, match="not found"):
        pull(pulling.far.transport, pulling.far.scratch, [item], pulling.dest, python="no-such-python")
