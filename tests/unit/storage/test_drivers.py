"""Which driver a URL gets, what is said where it can't be had, and the time that its calls are given."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from llmctl.errors import ConfigError, DeadlineError, TransferError
from llmctl.storage.deadline import AbandonedError, budget, call, persist
from llmctl.storage.files import open_store


@pytest.mark.parametrize(
    ("uri", "module", "extra"),
    [
        ("hdfs://nn:8020/x", "hdfs_native", "llmctl[hdfs]"),
        ("webhdfs://nn:9870/x", "requests", "llmctl[hdfs]"),
        ("s3://bucket/x", "s3fs", "llmctl[s3]"),
        ("s3a://bucket/x", "s3fs", "llmctl[s3]"),
    ],
)
def test_a_missing_driver_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, uri: str, module: str, extra: str
) -> None:
    """Without the driver's package a URL is a ConfigError that says what to install."""
    for loaded in [name for name in sys.modules if name.startswith("fsspec.implementations.webhdfs")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("AWS_PROFILE", "another")  # a connection of before is not taken
    with pytest.raises(ConfigError) as caught:
        open_store(uri + "/missing-driver")
    assert extra in caught.value.message
    assert caught.value.hint == f"pip install '{extra}'"


@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "webhdfs:///x", "webhdfs://host:port/x"])
def test_a_url_without_its_place_says_how(uri: str) -> None:
    """A URL that names no bucket or host is refused with an example, before anything is contacted."""
    pytest.importorskip("s3fs" if uri.startswith("s3") else "requests")
    with pytest.raises(ConfigError) as caught:
        open_store(uri)
    assert "like " in str(caught.value.hint)


def test_a_slow_transfer_goes_on_while_it_moves() -> None:
    """Beats keep a call alive beyond the stall time; without one it ends there, not at the deadline."""
    own = {}

    def slow(beats: int) -> str:
        own["budget"] = budget()
        for _ in range(beats):
            budget().beat()
            time.sleep(0.1)
        threading.Event().wait(0.1 if beats > 5 else 20)
        return "done"

    assert call(lambda: slow(10), action="a", where="w", deadline_s=60, stall_s=0.5) == "done"
    began = time.monotonic()
    with pytest.raises(DeadlineError):
        call(lambda: slow(1), action="a", where="w", deadline_s=60, stall_s=0.5)
    assert time.monotonic() - began < 15
    with pytest.raises(AbandonedError):
        own["budget"].beat()


def test_a_call_that_is_given_up_is_cancelled() -> None:
    """What the driver named for it is called at the deadline, also where it is named later."""
    cancelled = threading.Event()

    def blocked() -> None:
        budget().on_abandon(cancelled.set)
        cancelled.wait(20)

    with pytest.raises(DeadlineError):
        call(blocked, action="a", where="w", deadline_s=0.2)
    assert cancelled.wait(10)


def test_only_passing_failures_are_tried_again() -> None:
    """A refused connection is, a permission is not; the last reason is the one that is told."""
    turns = []

    def fail(error: OSError) -> None:
        turns.append(error)
        raise error

    def attempt(error: OSError) -> None:
        persist(
            lambda: fail(error),
            action="a",
            where="w",
            deadline_s=30,
            stall_s=30,
            passing=lambda error: isinstance(error, ConnectionError),
            tries=3,
        )

    with pytest.raises(TransferError, match="no such key"):
        attempt(PermissionError("no such key"))
    assert len(turns) == 1
    with pytest.raises(TransferError, match="refused"):
        attempt(ConnectionRefusedError("refused"))
    assert len(turns) == 4


def test_the_failure_before_a_deadline_is_told() -> None:
    """Where the time ends between two tries, the error names what went wrong until then."""

    def fail() -> None:
        if len(turns) > 0:
            time.sleep(20)
        turns.append(1)
        raise ConnectionResetError("reset by the gateway")

    turns: list[int] = []
    with pytest.raises(DeadlineError, match=r"no answer within 0\.6 s; before that: can't a: reset by"):
        persist(fail, action="a", where="w", deadline_s=0.6, stall_s=0.6, passing=lambda _: True, tries=5)
