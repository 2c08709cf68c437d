"""The ledger: several writers at once, and never the reason why a command fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llmctl.controller.ledger.records import HostRecord, RunRecord
from llmctl.controller.ledger.store import Ledger
from llmctl.errors import NotFoundError
from llmctl.wire.states import RunState

WRITERS = 4
RUNS_EACH = 15


def record(run_id: str, age: float = 0.0, **more: object) -> RunRecord:
    name = run_id.rpartition("-")[0]
    return RunRecord(run_id=run_id, name=name, created_at=1000.0 - age, **more)  # type: ignore[arg-type]


def fail(line: str) -> None:
    raise AssertionError(line)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "state", warn=fail) as opened:
        yield opened


def test_a_run_comes_back_whole(ledger: Ledger) -> None:
    """Every field survives the file, hosts and job included."""
    whole = record(
        "demo-7f3a",
        hosts=(
            HostRecord(name="a", addr="10.0.0.1", port=2222, proxy_jump="b"),
            HostRecord(name="b", addr="x"),
        ),
        inventory_path="/x/hosts.yaml",
        state=RunState.LOST_CONTACT,
        attempt=2,
        step=5,
        total=10,
        loss=1.5,
        tokens_per_s=41.0,
        exit_code=100,
        reason="b silent",
        updated_at=7.0,
        job={"name": "demo", "env": {"secrets": ["T"]}},
    )
    ledger.add(whole)
    assert ledger.get("demo-7f3a") == whole


def test_files_are_private(ledger: Ledger) -> None:
    """Nobody else on this machine can read where one's hosts are."""
    ledger.add(record("demo-7f3a"))
    assert ledger.path.parent.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in ledger.path.parent.iterdir()} == {0o600}


def test_update_changes_only_what_it_names(ledger: Ledger) -> None:
    """An update keeps every other field, sets the time, and never invents a run."""
    ledger.add(record("demo-7f3a", step=1, loss=3.0))
    ledger.update("demo-7f3a", step=2, state=RunState.RUNNING)
    ledger.update("other-0000", step=9)
    changed = ledger.get("demo-7f3a")
    assert changed is not None
    assert (changed.step, changed.loss, changed.state) == (2, 3.0, RunState.RUNNING)
    assert changed.updated_at > 1000
    assert len(ledger.list()) == 1
    with pytest.raises(TypeError, match="speed"):
        ledger.update("demo-7f3a", speed=1)


def test_newest_first_and_limited(ledger: Ledger) -> None:
    """`list` is ordered by age, whatever the order in which runs were added."""
    for run_id, age in (("b-0001", 2.0), ("a-0001", 1.0), ("c-0001", 3.0)):
        ledger.add(record(run_id, age))
    assert [run.run_id for run in ledger.list()] == ["a-0001", "b-0001", "c-0001"]
    assert [run.run_id for run in ledger.list(limit=1)] == ["a-0001"]


def test_a_run_is_meant_by_id_prefix_or_name(ledger: Ledger) -> None:
    """A unique prefix or name is enough; of several the one that goes on is meant; else it is asked."""
    ledger.add(record("demo-7f3a", 1.0, state=RunState.SUCCEEDED))
    ledger.add(record("demo-7bbb", 2.0, state=RunState.FAILED))
    ledger.add(record("sft-02cd"))
    assert ledger.get("demo-7f3a") is not None
    assert [run.run_id for run in (ledger.get("demo-7f"), ledger.get("sft")) if run] == [
        "demo-7f3a",
        "sft-02cd",
    ]
    assert ledger.get("nope") is None
    assert ledger.get("%") is None
    with pytest.raises(NotFoundError, match="`demo` fits 2 runs: demo-7f3a, demo-7bbb"):
        ledger.get("demo")
    ledger.update("demo-7bbb", state=RunState.RUNNING)
    meant = ledger.get("demo")
    assert meant is not None
    assert meant.run_id == "demo-7bbb"


def test_a_whole_id_wins_over_a_longer_one(ledger: Ledger) -> None:
    """An id that is the beginning of another id still means itself."""
    ledger.add(record("demo-7f3a"))
    ledger.add(record("demo-7f3abc"))
    exact = ledger.get("demo-7f3a")
    assert exact is not None
    assert exact.run_id == "demo-7f3a"


def test_forget(ledger: Ledger) -> None:
    """Forgetting says whether there was something to forget."""
    ledger.add(record("demo-7f3a"))
    assert ledger.forget("demo-7f3a")
    assert not ledger.forget("demo-7f3a")
    assert ledger.list() == ()


def _write_some(state_dir: str, writer: int) -> None:
    with Ledger(state_dir, warn=fail) as ledger:
        for number in range(RUNS_EACH):
            ledger.add(record(f"w{writer}-{number:04x}"))
            ledger.update(f"w{writer}-{number:04x}", step=number)
            shared = ledger.get("shared-0000")
            assert shared is not None
            ledger.update("shared-0000", **{("step", "total", "attempt", "exit_code")[writer]: number})


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    """Nothing is lost and nobody is warned when processes open, add and update the same file together."""
    with Ledger(tmp_path / "other", warn=fail):
        pass  # the processes below must also survive creating the file at the same moment
    spawn = multiprocessing.get_context("spawn")
    with Ledger(tmp_path, warn=fail) as ledger:
        ledger.add(record("shared-0000"))
        writers = [spawn.Process(target=_write_some, args=(str(tmp_path), n)) for n in range(WRITERS)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(timeout=120)
        assert [writer.exitcode for writer in writers] == [0] * WRITERS
        assert len(ledger.list(limit=1000)) == WRITERS * RUNS_EACH + 1
        shared = ledger.get("shared-0000")
    last = RUNS_EACH - 1
    assert shared is not None
    assert (shared.step, shared.total, shared.attempt, shared.exit_code) == (last, last, last, last)


def _open_only(state_dir: str, gate: str) -> None:
    while not os.path.exists(gate):  # noqa: PTH110 - the quickest test, so that all start together
        pass
    Ledger(state_dir, warn=fail).close()


def test_many_processes_create_it_at_once(tmp_path: Path) -> None:
    """The first start ever of several llmctl processes at once makes one sound file."""
    spawn = multiprocessing.get_context("spawn")
    for round_ in range(3):
        gate, state = tmp_path / f"gate{round_}", tmp_path / f"state{round_}"
        openers = [spawn.Process(target=_open_only, args=(str(state), str(gate))) for _ in range(WRITERS)]
        for opener in openers:
            opener.start()
        gate.touch()
        for opener in openers:
            opener.join(timeout=60)
        assert [opener.exitcode for opener in openers] == [0] * WRITERS


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_broken_file_is_set_aside(tmp_path: Path, content: bytes) -> None:
    """A damaged file costs one warning; it is kept beside, and the ledger works again at once."""
    (tmp_path / "ledger.db").write_bytes(content)
    warnings: list[str] = []
    with Ledger(tmp_path, warn=warnings.append) as ledger:
        ledger.add(record("demo-7f3a"))
    assert len(warnings) == 1
    (aside,) = tmp_path.glob("ledger.db.broken-*")
    assert aside.read_bytes() == content
    with Ledger(tmp_path, warn=fail) as ledger:
        assert len(ledger.list()) == 1


def test_a_place_that_cannot_be_is_no_error(tmp_path: Path) -> None:
    """Where the folder can't be made everything still works, in memory, after one warning."""
    (tmp_path / "file").touch()
    warnings: list[str] = []
    with Ledger(tmp_path / "file/below", warn=warnings.append) as ledger:
        ledger.add(record("demo-7f3a"))
        ledger.update("demo-7f3a", step=3)
        kept = ledger.get("demo")
    assert kept is not None
    assert kept.step == 3
    assert len(warnings) == 1
    assert "runs are still found on their hosts" in warnings[0]


def test_a_write_that_fails_later_is_no_error(tmp_path: Path) -> None:
    """A database that stays locked or was dropped under our hands is told once, and the command goes on."""
    warnings: list[str] = []
    with Ledger(tmp_path, warn=warnings.append) as ledger:
        with closing(sqlite3.connect(ledger.path)) as db:
            db.execute("DROP TABLE runs")
        ledger.add(record("demo-7f3a"))
        assert ledger.get("demo-7f3a") is None
        assert ledger.list() == ()
        assert not ledger.forget("demo-7f3a")
    assert len(warnings) == 1


def test_another_version_of_llmctl(tmp_path: Path) -> None:
    """A newer llmctl's row is read, and our update keeps the fields that we don't know."""
    with Ledger(tmp_path, warn=fail) as ledger:
        ledger.add(record("demo-7f3a"))
        with closing(sqlite3.connect(ledger.path)) as db:
            row = json.loads(db.execute("SELECT record FROM runs").fetchone()[0])
            text = json.dumps({**row, "colour": "green"})
            db.execute("UPDATE runs SET record = ?", (text,))
            db.execute("PRAGMA user_version = 9")
            db.commit()
    with Ledger(tmp_path, warn=fail) as ledger:
        ledger.update("demo-7f3a", step=4)
        changed = ledger.get("demo-7f3a")
        assert changed is not None
        assert changed.step == 4
        with closing(sqlite3.connect(ledger.path)) as db:
            assert json.loads(db.execute("SELECT record FROM runs").fetchone()[0])["colour"] == "green"


def test_a_row_of_nonsense_hides_no_other(tmp_path: Path) -> None:
    """One unreadable row is passed over; the rest is shown."""
    with Ledger(tmp_path, warn=fail) as ledger:
        ledger.add(record("good-0001"))
        with closing(sqlite3.connect(ledger.path)) as db:
            db.executemany(
                "INSERT INTO runs VALUES (?, ?, ?, ?)",
                [("bad-0001", "bad", 1.0, "{"), ("bad-0002", "bad", 1.0, '{"run_id": 3}')],
            )
            db.commit()
        ledger.update("bad-0001", step=1)
        assert [run.run_id for run in ledger.list()] == ["good-0001"]
