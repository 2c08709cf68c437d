"""Sharding that is ended in the middle: nothing half-written counts, and the same command completes it."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmctl.errors import ConfigError, NotFoundError
from llmctl.storage.corpus import sources as cutting
from llmctl.storage.corpus.journal import PROGRESS
from llmctl.storage.corpus.progress import Progress
from llmctl.storage.corpus.reader import ShardReader
from llmctl.storage.corpus.shard import shard
from llmctl.storage.files import open_store

STDLIB = Path(sysconfig.get_path("stdlib"))
SOURCES = [str(STDLIB / name) for name in ("json", "asyncio")]
UNIT = 60_000
SHARD = 40_000

SCRIPT = f"""
import sys
from llmctl.storage.corpus import sources
from llmctl.storage.corpus.shard import shard
sources.UNIT_BYTES = {UNIT}
def tell(progress):
    print(progress.shards, flush=True)
    sys.stdin.readline()
shard({SOURCES!r}, sys.argv[1], shard_tokens={SHARD}, workers=2, progress=tell)
"""


class Interrupted(BaseException):
    """Ends a run from inside its progress callback, as Ctrl-C would."""


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file in a folder, hidden ones included."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def children(pid: int) -> list[int]:
    """Processes that `pid` started."""
    lists = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
    return [int(child) for each in lists for child in each.read_text().split()]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll, at most 30 seconds."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"not within 30 s: {what}"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def started(dest: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in another process that waits for a line after each unit."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(dest)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.kill()


def advance(process: subprocess.Popen[str], shards: int) -> None:
    """Let the run go on until it has put this many shards in place."""
    assert process.stdin is not None
    assert process.stdout is not None
    while int(process.stdout.readline()) < shards:
        process.stdin.write("\n")
        process.stdin.flush()


def make(dest: str, progress: Callable[[Progress], None] | None = None, **more: int) -> None:
    """The same corpus in this process."""
    shard(SOURCES, dest, shard_tokens=SHARD, workers=more.get("workers", 2), progress=progress)


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What an uninterrupted run leaves."""
    monkeypatch.setattr(cutting, "UNIT_BYTES", UNIT)
    make(str(tmp_path / "whole"))
    return contents(tmp_path / "whole")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, whole: dict[str, str], end: signal.Signals
) -> None:
    """kill -9 and Ctrl-C: no data set yet, no process left, whole shards kept, the same end."""
    dest = tmp_path / "out"
    with started(dest) as process:
        advance(process, 4)
        encoders = children(process.pid)
        os.kill(process.pid, end)
        process.wait(30)
        wait_until(lambda: all(is_gone(pid) for pid in encoders), "the encoders end with their parent")
    assert len(encoders) == 2
    with pytest.raises(NotFoundError, match="holds no data set"):
        ShardReader(str(dest))
    kept = {path.name: path.stat().st_mtime_ns for path in dest.glob("shard-0000[0-3].*")}
    assert len(kept) == 8
    make(str(dest), workers=3)
    assert contents(dest) == whole
    assert {name: (dest / name).stat().st_mtime_ns for name in kept} == kept


@pytest.mark.parametrize("scheme", ["disk", "memory"])
def test_stopping_anywhere_ends_in_the_same_bytes(tmp_path: Path, whole: dict[str, str], scheme: str) -> None:
    """Stopped again and again, after every third unit: on a disk and in memory the result is the same."""
    dest = str(tmp_path / "out") if scheme == "disk" else f"memory://{secrets.token_hex(6)}/out"
    stops, seen = 0, 0
    while True:
        units: list[Progress] = []

        def tell(progress: Progress, units: list[Progress] = units) -> None:
            units.append(progress)
            if len(units) == 3:
                raise Interrupted

        try:
            make(dest, tell)
            break
        except Interrupted:
            stops += 1
        assert not open_store(dest).exists("manifest.json")
        assert units[-1].bytes_done > seen, "no progress between two stops"
        seen = units[-1].bytes_done
    store = open_store(dest)
    assert stops > 3
    assert {
        file.path: hashlib.sha256(store.read_bytes(file.path)).hexdigest() for file in store.list()
    } == whole


def test_a_shard_that_was_damaged_meanwhile_is_made_again(tmp_path: Path, whole: dict[str, str]) -> None:
    """Resuming reads what is there: a flipped byte in an old shard does not reach the data set."""
    dest = tmp_path / "out"
    with started(dest) as process:
        advance(process, 4)
        process.kill()
    path = dest / "shard-00001.bin"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    make(str(dest))
    assert contents(dest) == whole


def test_an_unfinished_data_set_of_other_settings_is_refused(tmp_path: Path, whole: dict[str, str]) -> None:
    """Half of one corpus is never completed with another; overwrite starts afresh and leaves no strays."""
    dest = tmp_path / "out"
    with started(dest) as process:
        advance(process, 4)
        process.kill()
    assert (dest / PROGRESS).exists()
    with pytest.raises(ConfigError, match="unfinished data set of other input or settings") as caught:
        shard(SOURCES, str(dest), shard_tokens=10 * SHARD)
    assert "--overwrite" in str(caught.value.hint)
    manifest = shard(SOURCES[:1], str(dest), shard_tokens=10 * SHARD, overwrite=True)
    names = {"manifest.json", ".input.json", "shard-00000.bin", "shard-00000.idx"}
    assert len(manifest.shards) == 1
    assert {path.name for path in dest.iterdir()} == names


def test_two_runs_at_one_destination_do_not_mix(tmp_path: Path, whole: dict[str, str]) -> None:
    """While one is at work, the other is refused at once; once it is gone, the other may go on."""
    dest = tmp_path / "out"
    with started(dest) as process:
        advance(process, 2)
        with pytest.raises(ConfigError, match="another process is making a data set there"):
            make(str(dest))
        process.kill()
    make(str(dest))
    assert contents(dest) == whole


def test_replacing_takes_the_old_data_set_down_first(tmp_path: Path, whole: dict[str, str]) -> None:
    """A reader never finds the old manifest over new shards: it is gone before the first of them."""
    dest = tmp_path / "out"
    shard(SOURCES[:1], str(dest), shard_tokens=SHARD)

    def tell(progress: Progress) -> None:
        assert not (dest / "manifest.json").exists()
        raise Interrupted

    with pytest.raises(Interrupted):
        shard(SOURCES, str(dest), shard_tokens=SHARD, overwrite=True, progress=tell)
    make(str(dest))
    assert contents(dest) == whole
