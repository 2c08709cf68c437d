"""`store check` on every kind of store: a sound one is fit, a broken one is told, nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from llmctl.errors import TransferError
from llmctl.storage.drill import STEPS, drill
from llmctl.storage.files import open_store
from tests.contract.stores import store_uri
from tests.contract.test_store import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_store_is_fit_and_stays_empty(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Every step passes on a real store, what was measured is there, and what lay beside is untouched."""
    uri = store_uri(request, kind, tmp_path, monkeypatch)
    store = open_store(uri)
    store.write_bytes("mine", b"kept")
    begun: list[str] = []
    report = drill(uri, seconds=4, size=4_000_000, begins=begun.append)
    assert report.fit, [finding.text for finding in report.failed]
    assert [finding.name for finding in report.findings] == begun == [*STEPS, "remove"]
    assert {"up_bytes_per_s", "down_bytes_per_s", "write_s", "listed_files"} <= report.numbers.keys()
    assert ("free_bytes" in report.numbers) == (kind in ("path", "file", "cephfs", "webhdfs"))
    assert abs(report.numbers.get("clock_skew_s", 0)) < 5
    assert [file.path for file in store.list()] == ["mine"]


class BrokenFileSystem(MemoryFileSystem):
    """A store that forgets: `fault` says how."""

    protocol = "broken"
    store: dict[str, Any] = {}  # noqa: RUF012 - as the class it derives from
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    fault = ""

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        found = super().find(path, *args, **kwargs)
        if self.fault == "list" and isinstance(found, dict) and len(found) > 1000:
            return dict(sorted(found.items())[:1000])
        return found

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        if self.fault == "read-only":
            raise PermissionError(13, "Permission denied", path)
        if self.fault == "case":
            path = path.replace("ü", "u")
        super().pipe_file(path, value, **kwargs)


@pytest.fixture
def broken() -> type[BrokenFileSystem]:
    """The driver, registered as `broken://`, without faults."""
    fsspec.register_implementation("broken", BrokenFileSystem, clobber=True)
    BrokenFileSystem.store.clear()
    BrokenFileSystem.fault = ""
    return BrokenFileSystem


@pytest.mark.parametrize(
    ("fault", "step", "told"), [("list", "list", "of 1100 files 1000"), ("case", "names", "ü-ñ-漢")]
)
def test_a_store_that_breaks_a_promise_is_not_fit(
    broken: type[BrokenFileSystem], fault: str, step: str, told: str
) -> None:
    """The step that found it says what; the other steps are tried all the same."""
    broken.fault = fault
    report = drill("broken://root/x", seconds=60, size=1_000_000)
    assert not report.fit
    assert [finding.name for finding in report.failed] == [step]
    assert told in report.failed[0].text


def test_a_store_that_may_not_be_written_is_one_refusal(broken: type[BrokenFileSystem]) -> None:
    """Read-only: the first write's own error, with what to check."""
    broken.fault = "read-only"
    with pytest.raises(TransferError, match="Permission denied") as caught:
        drill("broken://root/x")
    assert caught.value.hint == "check owner and permissions there"


def llmctl(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from llmctl.controller.cli.app import main; main()", *argv]
    environment = {**os.environ, **env}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_the_command_tells_a_verdict(tmp_path: Path) -> None:
    """Plain lines and a verdict without a terminal, one document with -o json, exit code 0."""
    done = llmctl("store", "check", str(tmp_path / "s"), "--seconds", "4", "--size", "1")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(STEPS) + 2
    assert " is fit: replace and rename are one step" in done.stdout.splitlines()[-1]
    done = llmctl("store", "check", str(tmp_path / "s"), "--seconds", "4", "--size", "1", "-o", "json")
    document = json.loads(done.stdout)
    assert document["kind"] == "store-check"
    assert document["fit"] is True
    assert [check["name"] for check in document["checks"]] == [*STEPS, "remove"]


@pytest.mark.stores
@pytest.mark.parametrize(
    ("bucket", "change", "code", "told", "hint"),
    [
        ("nosuchbucket", {}, 102, "no such bucket", "llmctl makes no buckets"),
        ("lab", {"AWS_SECRET_ACCESS_KEY": "wr0ng" * 8}, 21, "SignatureDoesNotMatch", "check the credentials"),
        ("lab", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 21, "Connection refused", "is the store up"),
    ],
)
def test_a_store_that_can_not_be_used_is_two_lines(
    request: pytest.FixtureRequest,
    bucket: str,
    change: dict[str, str],
    code: int,
    told: str,
    hint: str,
) -> None:
    """A wrong bucket, a wrong secret, nobody there: one line, one hint, its exit code; no secret shown."""
    environment = {**request.getfixturevalue("ceph").environment(), **change}
    done = llmctl("store", "check", f"s3://{bucket}/x", **environment)
    assert done.returncode == code
    assert told in done.stderr
    assert hint in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert "wr0ng" not in done.stderr


def test_ctrl_c_while_the_second_writer_starts_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread's start waits for it, so Ctrl-C often arrives there: the writer ends all the same."""
    start, writers = threading.Thread.start, []

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "llmctl-drill-writer":
            writers.append(thread)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        drill(str(tmp_path / "s"), seconds=300)
    (writer,) = writers
    assert not writer.is_alive()
    assert list((tmp_path / "s").iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """Interrupted in its middle, the check removes its folder all the same."""
    place = tmp_path / "s"
    command = [sys.executable, "-c", "from llmctl.controller.cli.app import main; main()"]
    with subprocess.Popen(
        [*command, "store", "check", str(place), "--seconds", "300"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        end = time.monotonic() + 60
        while not list(place.glob("llmctl-check-*/replaced")):
            assert running.poll() is None
            assert time.monotonic() < end
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode != 0
    assert list(place.iterdir()) == []
