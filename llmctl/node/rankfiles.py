"""What the rank shims leave in an attempt's directory, and what the agent and `status` read of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TypeVar

from llmctl.errors import IntegrityError
from llmctl.node import atomic, kernel
from llmctl.wire import codec
from llmctl.wire.layout import AttemptLayout
from llmctl.wire.records import RankExit

T = TypeVar("T")

_EXIT = re.compile(r"rank-(\d+)\.json\Z")


@dataclass(frozen=True)
class RankStart:
    """.rank-<n>.start.json: a rank runs as `pid`, the real one, not its shim."""

    rank: int
    local_rank: int
    pid: int
    started_at: float


def read_start(attempt: AttemptLayout, rank: int) -> RankStart | None:
    """The record of a rank that was started, or None."""
    return _read(RankStart, os.path.join(attempt.root, f".rank-{rank}.start.json"))


def read_exit(attempt: AttemptLayout, rank: int) -> RankExit | None:
    """The record of a rank that has ended, or None."""
    return _read(RankExit, attempt.rank_exit(rank))


def exits(attempt: AttemptLayout) -> tuple[RankExit, ...]:
    """Ranks that have ended, by rank. A damaged record never hides the others."""
    try:
        names = os.listdir(attempt.root)
    except OSError:
        return ()
    found = [_read(RankExit, os.path.join(attempt.root, name)) for name in names if _EXIT.match(name)]
    return tuple(sorted((one for one in found if one), key=lambda one: one.rank))


def ended(start: RankStart, status: int, now: float) -> RankExit:
    """The record of a rank that ended with the wait status `status`."""
    code, name = kernel.exit_code(status)
    return RankExit(
        rank=start.rank,
        local_rank=start.local_rank,
        pid=start.pid,
        code=code,
        started_at=start.started_at,
        ended_at=now,
        signal=name,
    )


def first_failure(ranks: tuple[RankExit, ...]) -> RankExit | None:
    """The rank that ended badly before all others did: the cause; the rest are its consequences."""
    failed = [rank for rank in ranks if rank.code != 0]
    return min(failed, key=lambda rank: rank.ended_at, default=None)


def _read(kind: type[T], path: str) -> T | None:
    try:
        text = atomic.read(path)
        return None if text is None else codec.loads(kind, text)
    except (IntegrityError, OSError):
        return None
