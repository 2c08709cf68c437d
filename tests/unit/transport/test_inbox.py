"""The inbox of a channel gives what came, in order, and says when nothing more comes."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paramiko.buffered_pipe import PipeTimeout

from llmctl.controller.transport.inbox import Inbox


@given(packets=st.lists(st.binary(min_size=1, max_size=9), max_size=9), size=st.integers(1, 12))
def test_bytes_come_in_order(packets: list[bytes], size: int) -> None:
    """Whatever the sizes of packets and reads, the bytes are those that were fed, then the end."""
    inbox = Inbox()
    for packet in packets:
        inbox.feed(packet)
    inbox.close()
    assert len(inbox) == len(b"".join(packets))
    read = list(iter(lambda: inbox.read(size, 1.0), b""))
    assert all(len(piece) <= size for piece in read)
    assert b"".join(read) == b"".join(packets)


def test_silence_is_a_timeout() -> None:
    """Nothing fed and not closed: a timeout, never an end."""
    with pytest.raises(PipeTimeout):
        Inbox().read(1, 0.01)
    with pytest.raises(PipeTimeout):
        Inbox().read(1, 0.0)


def test_close_wakes_a_reader() -> None:
    """A reader that waits without a limit learns of the end."""
    inbox = Inbox()
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(inbox.read(1)))
    reader.start()
    inbox.close()
    reader.join(10)
    assert got == [b""]
