"""What goes wrong with a store: real refusals of the system, drivers that fail, hang or hide the reason."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from llmctl.errors import ConfigError, DeadlineError, LlmctlError, NotFoundError, TransferError
from llmctl.storage.faults import reason
from llmctl.storage.files import open_store
from llmctl.storage.local import write_beside


class FaultyFileSystem(MemoryFileSystem):
    """A driver with the faults that real ones were seen to have; `fault` switches one on."""

    protocol = "faulty"
    store: dict[str, Any] = {}  # noqa: RUF012 - as the class it derives from
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    fault = ""
    release = threading.Event()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        if self.fault == "hang":
            self.release.wait(60)
        if self.fault == "short":
            return b""
        data: bytes = super().cat_file(path, start=start, end=end, **kwargs)
        return data

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        if self.fault == "hidden":
            real = RuntimeError("SignatureDoesNotMatch for https://u:pw@h/?sig=s3cr3t")
            raise OSError(22, None) from real
        super().pipe_file(path, value[:-1] if self.fault == "lossy" else value, **kwargs)


@pytest.fixture
def faulty() -> Iterator[type[FaultyFileSystem]]:
    """The driver, registered as `faulty://`, without faults."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    FaultyFileSystem.store.clear()
    FaultyFileSystem.fault = ""
    FaultyFileSystem.release.clear()
    yield FaultyFileSystem
    FaultyFileSystem.release.set()


def test_a_hanging_driver_ends_in_an_error(faulty: type[FaultyFileSystem]) -> None:
    """A call that never returns is given up at the deadline, with the file's name."""
    store = open_store("faulty://root", deadline_s=0.3)
    store.write_bytes("a", b"data")
    faulty.fault = "hang"
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"faulty://root/a: can't read: no answer within 0\.3 s"):
        store.read_bytes("a")
    assert time.monotonic() - began < 30


def test_the_real_reason_is_shown_without_secrets(faulty: type[FaultyFileSystem]) -> None:
    """The innermost cause is reported, and no password or signature in it."""
    store = open_store("faulty://root")
    faulty.fault = "hidden"
    with pytest.raises(TransferError, match="SignatureDoesNotMatch") as caught:
        store.write_bytes("a", b"data")
    assert "pw" not in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_lost_bytes_are_noticed(faulty: type[FaultyFileSystem]) -> None:
    """A driver that stores less than it was given, without a word, is an error at once."""
    store = open_store("faulty://root")
    faulty.fault = "lossy"
    with pytest.raises(TransferError, match="wrote 4 bytes, the store has 3"):
        store.write_bytes("a", b"data")


def test_a_read_that_ends_early_is_an_error(faulty: type[FaultyFileSystem]) -> None:
    """A short answer is never taken for the end of the file."""
    store = open_store("faulty://root")
    store.write_bytes("a", b"data")
    faulty.fault = "short"
    with pytest.raises(TransferError, match="ended at byte 0 of 4"):
        store.read_bytes("a")


def test_a_failed_copy_leaves_the_target_alone(tmp_path: Path, faulty: type[FaultyFileSystem]) -> None:
    """get_file that breaks in the middle leaves the old file and no half of the new one."""
    store = open_store("faulty://root")
    store.write_bytes("a", b"data")
    target = tmp_path / "a"
    target.write_bytes(b"old")
    faulty.fault = "short"
    with pytest.raises(TransferError):
        store.get_file("a", target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_named_and_leaves_nothing() -> None:
    """No room: the system's reason, a hint, and no trace of the file."""
    store = open_store("/dev/full/x")
    with pytest.raises(TransferError, match="Not a directory"):
        store.write_bytes("a", b"data")
    with pytest.raises(TransferError, match="No space left on device") as caught:
        _write_to_full_device()
    assert caught.value.hint == "free some room there, or use another place"


def _write_to_full_device() -> None:
    from llmctl.storage.faults import explained

    with explained("write", "/dev/full"), Path("/dev/full").open("wb", buffering=0) as stream:
        stream.write(b"x")


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    """Whatever ends a write, the final name does not appear and the temporary one goes."""

    def write() -> None:
        with write_beside(tmp_path / "a") as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_of_the_system_is_one_of_ours(tmp_path: Path) -> None:
    """A file in place of a folder: TransferError with path and reason, not a bare OSError."""
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path))
    with pytest.raises(LlmctlError, match="file"):
        store.write_bytes("file/below", b"")
    (tmp_path / "folder" / "x").mkdir(parents=True)
    with pytest.raises(LlmctlError, match="folder"):
        store.write_bytes("folder", b"")


def test_a_link_that_loops_does_not_hang_a_listing(tmp_path: Path) -> None:
    """Links to files are followed, links to folders are not."""
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    assert [file.path for file in open_store(str(tmp_path)).list()] == ["a", "b"]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:secret@bucket/x",
        "sftp://me:secret@host/x",
        "https://host/x?X-Amz-Signature=secret&y=1",
        "https://host/x?a=b&token=secret",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(uri: str) -> None:
    """A secret in a URL is a ConfigError whose text does not contain it."""
    with pytest.raises(ConfigError, match="credentials") as caught:
        open_store(uri)
    assert "secret" not in str(caught.value)


def test_an_unknown_scheme_is_one_line() -> None:
    """A URL that nobody knows is the user's error, not a traceback."""
    with pytest.raises(ConfigError, match="nosuch"):
        open_store("nosuch://x")


def test_missing_in_memory_is_not_found(faulty: type[FaultyFileSystem]) -> None:
    """NotFoundError comes from the driver's FileNotFoundError, by type, not by text."""
    with pytest.raises(NotFoundError, match="faulty://root/a"):
        open_store("faulty://root").read_bytes("a")


@pytest.mark.parametrize(
    "text", ["not a folder\n\tat org.apache.X(Y.java:1)\n\tat java.Z", r"not a folder\n\tat org.apache.X"]
)
def test_a_java_stack_is_cut_off(text: str) -> None:
    """HDFS sends its stack with a refusal; a person gets the sentence before it."""
    assert reason(RuntimeError(text)) == "not a folder"
