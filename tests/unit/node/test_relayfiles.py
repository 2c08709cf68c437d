"""The shelf of a relay: where files go, and what may not be written there."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
from pathlib import Path

import pytest

from llmctl.errors import IntegrityError, TransferError
from llmctl.node.relayfiles import Shelf
from llmctl.wire.environments import Blob


def blob(data: bytes, name: str = "f") -> Blob:
    return Blob(sha256=hashlib.sha256(data).hexdigest(), size=len(data), name=name)


def test_equal_files_come_once_and_lie_under_each_of_their_names(tmp_path: Path) -> None:
    """Two places of one content: one transfer, two files, nothing beside them."""
    one, last = blob(b"same"), blob(b"{}", "manifest.json")
    places = {one.sha256: ("a/x", "b/y"), last.sha256: ("manifest.json",)}
    with Shelf(str(tmp_path), [one, last], places) as shelf:
        shelf.fill(io.BytesIO(b"same{}").read)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"a/x", "b/y", "manifest.json"}
    assert not Shelf(str(tmp_path), [one, last], places).missing


@pytest.mark.parametrize("place", ["../x", "/x", "a/../../x"])
def test_a_place_never_leaves_the_folder(tmp_path: Path, place: str) -> None:
    """A manifest is read from a store: what it names stays below the folder."""
    one = blob(b"x")
    with pytest.raises(IntegrityError, match="not a path below"):
        Shelf(str(tmp_path / "d"), [one], {one.sha256: (place,)})


def test_what_is_cut_or_damaged_is_never_seen_under_its_name(tmp_path: Path) -> None:
    """Early end and wrong bytes: an error, and no file."""
    one = blob(b"right")
    for sent, kind in ((b"rig", TransferError), (b"wrong", IntegrityError)):
        with Shelf(str(tmp_path), [one]) as shelf, pytest.raises(kind):
            shelf.fill(io.BytesIO(sent).read)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_more_files_than_descriptors_and_handed_on_while_they_come(tmp_path: Path) -> None:
    """A thousand and some files come, and a peer gets each of them in order, the empty one too."""
    contents = [f"{number}".encode() for number in range(1200)] + [b""]
    blobs = [blob(data) for data in contents]
    ours, peers = socket.socketpair()
    with Shelf(str(tmp_path), blobs) as shelf, ours, peers:

        def hand_on() -> None:
            for one in blobs:
                shelf.hand_on(one.sha256, ours)
            ours.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=hand_on)
        thread.start()
        shelf.fill(io.BytesIO(b"".join(contents)).read)
        got = b""
        while data := peers.recv(1 << 16):
            got += data
        thread.join(30.0)
    assert got == b"".join(contents)
