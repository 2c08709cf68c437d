"""A hang: this host's ranks live, and none of them makes progress any more.

First every rank's Python stacks are taken, then the end is held back for a moment, so that the other hosts'
agents, which see the same standstill, get theirs too: ending one rank breaks the collectives of all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Optional

from llmctl.errors import IntegrityError
from llmctl.node import atomic, procs, rankfiles, stacks
from llmctl.node.journal import Journal
from llmctl.wire import codec
from llmctl.wire.layout import AttemptLayout
from llmctl.wire.progress import SAVING, STACK_SIGNAL, Hang, Progress, RankStack
from llmctl.wire.records import EventKind
from llmctl.wire.specs import NodeSpec

SHORTEST_S = 120.0
"""A derived bound is never below this: a store, a page cache or a neighbour may have a bad minute."""

TIMES_THE_LONGEST = 20.0
"""A step that takes this many times as long as the longest before it is none any more."""

ENOUGH_STEPS = 3
"""Steps that must have been measured before a bound can be derived from them."""

GRACE_S = 3.0
"""Between SIGTERM and SIGKILL of ranks that hang: they can't finish a step."""

BESIDE_STEPS_S = 600.0
"""A bound is never below this before the first step and after the last one: both are silent."""

_LOOK_S = 0.5
_ASLEEP_S = 15.0
"""A gap between two looks by which this process itself was frozen, or its host asleep."""

_STACKS_S = 8.0
_HOLD_S = 6.0
_HOLD_FOR_PEERS_S = 12.0


@dataclass(frozen=True)
class _Signs:
    """What changes while ranks work."""

    progress: tuple[Progress, ...]
    files: tuple[int, ...]

    @property
    def saving(self) -> bool:
        return any(one.phase == SAVING for one in self.progress)

    @property
    def stepping(self) -> bool:
        """Steps are being reported, and there are more to come."""
        return any(one.total is None or one.step < one.total for one in self.progress)


class Watchdog:
    """Looks at the ranks' signs of life now and then; `reason` is not empty once they hang for good."""

    def __init__(self, spec: NodeSpec, attempt: AttemptLayout, journal: Journal) -> None:
        self._spec = spec
        self._attempt = attempt
        self._journal = journal
        self._ranks = range(spec.launch.first_rank, spec.launch.first_rank + spec.launch.nproc)
        self._seen: Optional[_Signs] = None
        self._looked = self._alive = time.monotonic()
        self._taking: Optional[_Taking] = None
        self._end_at: Optional[float] = None
        self.reason = ""

    def look(self, starts: Mapping[int, rankfiles.RankStart]) -> None:
        """Once all ranks have started."""
        now = time.monotonic()
        if self._spec.watch.hang_s == 0 or len(starts) < len(self._ranks) or now - self._looked < _LOOK_S:
            return
        asleep = now - self._looked > _ASLEEP_S
        self._looked = now
        signs = self._signs()
        if asleep or signs != self._seen or signs.saving:
            self._alive, self._seen = now, signs
            self._forget()
            return
        bound = bound_s(self._spec.watch.hang_s, signs.progress)
        if bound is not None and now - self._alive > bound:
            self._hanging(starts, signs, now - self._alive, bound)

    def _signs(self) -> _Signs:
        progress = progress_of(self._attempt, self._ranks)
        files = [_stamp(self._attempt.metrics)]
        found = _Signs(progress=progress, files=())
        if not found.stepping:  # nothing tells of steps: any output is a sign of life
            files += [_stamp(self._attempt.rank_log(rank)) for rank in self._ranks]
        return _Signs(progress=progress, files=tuple(files))

    def _forget(self) -> None:
        if self._taking is not None:
            self._journal.add(EventKind.HANG, detail="the ranks go on: it was none")
            atomic.remove(self._attempt.hang)
        self._taking, self._end_at = None, None

    def _hanging(
        self, starts: Mapping[int, rankfiles.RankStart], signs: _Signs, idle_s: float, bound: float
    ) -> None:
        if self._taking is None:
            self._taking = _Taking(self._attempt, starts, self._spec)
        if self._end_at is None and self._taking.ready():
            found = self._taking.found({one.rank: one.step for one in signs.progress})
            self._record(found, idle_s, bound)
            own = any(not one.waits for one in found)
            self._end_at = time.monotonic() + (_HOLD_S if own else _HOLD_FOR_PEERS_S)
            self._why = summary(found, idle_s)
        elif self._end_at is not None and time.monotonic() > self._end_at:
            self.reason = self._why

    def _record(self, found: tuple[RankStack, ...], idle_s: float, bound: float) -> None:
        self._journal.add(EventKind.HANG, detail=summary(found, idle_s))
        hang = Hang(at=time.time(), idle_s=idle_s, bound_s=bound, policy=self._spec.watch.policy, ranks=found)
        try:
            atomic.write(self._attempt.hang, codec.dumps(hang))
        except OSError:
            return  # the journal has it in one line


class _Taking:
    """Stacks of all ranks, asked for by a signal: ready when each file has grown and come to rest."""

    def __init__(
        self, attempt: AttemptLayout, starts: Mapping[int, rankfiles.RankStart], spec: NodeSpec
    ) -> None:
        self._paths = {rank: attempt.stack(rank) for rank in starts}
        self._before = {rank: _size(path) for rank, path in self._paths.items()}
        self._sizes = dict(self._before)
        self._deadline = time.monotonic() + _STACKS_S
        mark = f"LLMCTL_RUN_DIR={os.path.dirname(attempt.root)}".encode()
        self._states = {rank: self._ask(starts[rank].pid, mark, self._before[rank]) for rank in starts}

    def _ask(self, pid: int, mark: bytes, size: Optional[int]) -> str:
        """Signal the rank, if it listens: the signal would end another. Its process state."""
        seen = procs.stat(pid)
        if seen is None or not procs.with_environment((mark,), (pid,)):
            return "gone"
        if size is not None and procs.catches(pid, STACK_SIGNAL):
            procs.send(seen.ref, STACK_SIGNAL)
        return seen.state

    def ready(self) -> bool:
        """Every stack is there, or is not to be had."""
        sizes = {rank: _size(path) for rank, path in self._paths.items()}
        resting, self._sizes = sizes == self._sizes, sizes
        grown = all((sizes[rank] or 0) > (before or 0) for rank, before in self._before.items())
        return (resting and grown) or time.monotonic() > self._deadline

    def found(self, steps: Mapping[int, int]) -> tuple[RankStack, ...]:
        """Where each rank was."""
        return tuple(self._of_rank(rank, steps.get(rank)) for rank in sorted(self._paths))

    def _of_rank(self, rank: int, step: Optional[int]) -> RankStack:
        frames = stacks.main_thread(_text_after(self._paths[rank], self._before[rank] or 0))
        if frames:
            return RankStack(
                rank=rank, where=stacks.where(frames), waits=stacks.waits(frames, _line), step=step
            )
        state = self._states[rank]
        told = {"T": "stopped by a signal", "D": "blocked in the kernel (disk or driver)", "gone": "gone"}
        return RankStack(rank=rank, where=told.get(state, "no Python stack"), waits=False, step=step)


def bound_s(wanted: Optional[float], progress: tuple[Progress, ...]) -> Optional[float]:
    """Seconds without progress that are a hang; None: can't be told (yet). PURE."""
    if wanted is not None:
        stepping = any(one.total is None or one.step < one.total for one in progress)
        return (wanted if stepping else max(wanted, BESIDE_STEPS_S)) if wanted else None
    going = [one for one in progress if one.total is None or one.step < one.total]
    if not going or min(one.steps for one in going) <= ENOUGH_STEPS:
        return None
    return max(SHORTEST_S, TIMES_THE_LONGEST * max(one.longest_s for one in going))


def summary(found: Iterable[RankStack], idle_s: float) -> str:
    """One line for this host alone. PURE."""
    culprits = [f"rank {one.rank} at {one.where}" for one in found if not one.waits]
    told = ", ".join(culprits[:3]) if culprits else "its ranks wait in a collective for others"
    return f"hang: no step for {idle_s:.0f} s; {told}"


def progress_of(attempt: AttemptLayout, ranks: Iterable[int]) -> tuple[Progress, ...]:
    """What ranks of this host say of themselves; a damaged or missing file says nothing."""
    found = []
    for rank in ranks:
        try:
            text = atomic.read(attempt.progress(rank))
            if text is not None:
                found.append(codec.loads(Progress, text))
        except (OSError, IntegrityError):
            continue
    return tuple(found)


def read_hang(attempt: AttemptLayout) -> Optional[Hang]:
    """hang.json, or None where it is missing or damaged."""
    try:
        text = atomic.read(attempt.hang)
        return None if text is None else codec.loads(Hang, text)
    except (OSError, IntegrityError):
        return None


def _stamp(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _size(path: str) -> Optional[int]:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _text_after(path: str, offset: int) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            file.seek(offset)
            return file.read()
    except OSError:
        return ""


def _line(path: str, number: int) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for count, text in enumerate(file, 1):
                if count == number:
                    return text
    except OSError:
        pass
    return ""
