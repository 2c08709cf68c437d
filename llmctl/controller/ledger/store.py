"""The ledger file: SQLite, one row per run, safe for several llmctl processes at once.

The hosts are the truth, so nothing here is ever fatal: a ledger that can't be read or written costs one
warning, and the command goes on with an empty one in memory.

A row keeps the whole record as JSON beside the few columns that are searched. So an older llmctl can update
a row of a newer one without losing what it doesn't know, and a new field needs no migration.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmctl.controller.ledger.records import RunRecord
from llmctl.errors import IntegrityError, NotFoundError
from llmctl.wire import codec

FILE = "ledger.db"
SCHEMA = 1
BUSY_S = 5.0

_CREATE = """
CREATE TABLE IF NOT EXISTS runs (
    run_id     TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    created_at REAL NOT NULL,
    record     TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS runs_by_age ON runs (created_at DESC);
"""


class Ledger:
    """The runs that this machine knows of. Use as a context manager, or call `close`.

    Args:
        state_dir: folder of the file; made with mode 0700.
        warn: called at most once, with one line, when the ledger can't be used.
    """

    def __init__(self, state_dir: str | Path, *, warn: Callable[[str], None]) -> None:
        self.path = Path(state_dir) / FILE
        self._warn: Callable[[str], None] | None = warn
        self._db = self._open()

    def add(self, record: RunRecord) -> None:
        """Store a run; one of the same id is replaced (a run found on its hosts again)."""
        updated = record.updated_at or time.time()
        document = {**codec.encode(record), "updated_at": updated}
        row = (record.run_id, record.name, record.created_at, json.dumps(document))
        self._write(lambda db: _insert(db, row))

    def update(self, run_id: str, **changes: Any) -> None:
        """Change fields of a run by their names in RunRecord; an unknown run is left alone.

        Raises:
            TypeError: a field that RunRecord doesn't have.
        """
        unknown = set(changes) - _FIELDS
        if unknown:
            raise TypeError(f"RunRecord has no {sorted(unknown)}")
        changes.setdefault("updated_at", time.time())
        self._write(lambda db: _merge(db, run_id, codec.encode(changes)))

    def get(self, key: str) -> RunRecord | None:
        """The run whose id is `key`, or the only one whose id starts with it or whose name it is.

        Of several, the only one that has not ended is meant. None: no such run is known here.

        Raises:
            NotFoundError: several runs fit.
        """
        exact = self._select("WHERE run_id = ?", key)
        if exact:
            return exact[0]
        fitting = self._select("WHERE substr(run_id, 1, ?) = ? OR name = ?", len(key), key, key)
        going_on = [record for record in fitting if not record.state.ended]
        if len(fitting) > 1 and len(going_on) != 1:
            ids = ", ".join(record.run_id for record in fitting[:5])
            raise NotFoundError(f"`{key}` fits {len(fitting)} runs: {ids}", hint="give more of the run's id")
        chosen = going_on if len(fitting) > 1 else fitting
        return chosen[0] if chosen else None

    def list(self, limit: int = 50) -> tuple[RunRecord, ...]:
        """The newest runs, newest first."""
        return self._select("", limit=limit)

    def forget(self, run_id: str) -> bool:
        """Remove a run from the ledger (not from its hosts); whether it was there."""
        return self._write(lambda db: _delete(db, run_id)) > 0

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _select(self, where: str, *values: Any, limit: int = -1) -> tuple[RunRecord, ...]:
        query = f"SELECT record FROM runs {where} ORDER BY created_at DESC, run_id LIMIT ?"  # noqa: S608
        try:
            rows = self._db.execute(query, (*values, limit)).fetchall()
        except sqlite3.Error as error:
            self._complain(error)
            rows = []
        return tuple(record for row in rows if (record := _decode(row[0])) is not None)

    def _write(self, action: Callable[[sqlite3.Connection], int]) -> int:
        """One transaction; takes the lock first, so that what `action` reads still holds when it writes."""
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                return action(self._db)
        except sqlite3.Error as error:
            self._complain(error)
            return 0

    def _complain(self, error: Exception) -> None:
        warn, self._warn = self._warn, None
        if warn is not None:
            warn(f"the ledger {self.path} can't be used ({error}); runs are still found on their hosts")

    def _open(self) -> sqlite3.Connection:
        try:
            try:
                return self._open_file()
            except sqlite3.DatabaseError as error:
                if not _is_broken(error):
                    raise
                self._set_aside(error)
                return self._open_file()
        except (OSError, sqlite3.Error) as error:
            self._complain(error)
            return _prepare(sqlite3.connect(":memory:", isolation_level=None))

    def _open_file(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made here first, because SQLite would make it readable for others.
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        try:
            return _prepare(db)
        except sqlite3.Error:
            db.close()
            raise

    def _set_aside(self, error: Exception) -> None:
        """The broken file is kept for who wants to look; another process may have moved it already."""
        aside = self.path.with_name(f"{FILE}.broken-{int(time.time())}")
        with suppress(FileNotFoundError):
            self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        warn, self._warn = self._warn, None
        if warn is not None:
            warn(f"the ledger was broken ({error}) and starts anew; the old file is {aside}")


def _insert(db: sqlite3.Connection, row: tuple[str, str, float, str]) -> int:
    columns = "run_id, name, created_at, record"
    return db.execute(f"INSERT OR REPLACE INTO runs ({columns}) VALUES (?, ?, ?, ?)", row).rowcount  # noqa: S608


def _merge(db: sqlite3.Connection, run_id: str, changes: dict[str, Any]) -> int:
    row = db.execute("SELECT record FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    if row is None or _decode(row[0]) is None:
        return 0
    document = json.dumps({**json.loads(row[0]), **changes})
    return db.execute("UPDATE runs SET record = ? WHERE run_id = ?", (document, run_id)).rowcount


def _delete(db: sqlite3.Connection, run_id: str) -> int:
    return db.execute("DELETE FROM runs WHERE run_id = ?", (run_id,)).rowcount


_FIELDS = frozenset(RunRecord.__dataclass_fields__) - {"run_id"}


def _prepare(db: sqlite3.Connection) -> sqlite3.Connection:
    """Tables in place. A file of a newer llmctl is used as it is: its rows carry what we need."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    if db.execute("PRAGMA user_version").fetchone()[0] < SCHEMA:
        db.executescript(_CREATE + f"PRAGMA user_version = {SCHEMA};")
    return db


def _is_broken(error: sqlite3.Error) -> bool:
    """Not a database or damaged, as against locked, read-only or full."""
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def _decode(text: str) -> RunRecord | None:
    """A row that can't be read (edited by hand, of a far future) is passed over: the hosts know."""
    try:
        return codec.decode(RunRecord, json.loads(text))
    except (IntegrityError, ValueError):
        return None
