"""What the proof works with: journals and where they were found, stretches of steps, findings, a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from llmctl.wire.consumed import Journal, JournalHeader, StepsLine


class Verdict(StrEnum):
    """`incomplete`: nothing speaks against it, but a part of the proof is missing."""

    OK = "ok"
    INCOMPLETE = "incomplete"
    FAILED = "failed"


class Kind(StrEnum):
    """What a finding is about; all but `unknown` mean that the proof failed."""

    UNKNOWN = "unknown"
    DAMAGED = "damaged"
    MISSING = "missing"
    DOUBLED = "doubled"
    FOREIGN = "foreign"
    ORDER = "order"
    CORPUS = "corpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it must be.

    Attributes:
        start, end: the steps it is about, `end` without it; None: no certain ones.
    """

    kind: Kind
    text: str
    attempt: int | None = None
    rank: int | None = None
    host: str | None = None
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankJournal:
    """A journal and where it was found; attempt and rank are those of its path."""

    host: str
    attempt: int
    rank: int
    journal: Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Steps `start` to `end` (without it) as one attempt did them, for good."""

    attempt: int
    start: int
    end: int
    header: JournalHeader
    ranks: Mapping[int, RankJournal] = field(repr=False)

    def lines(self, rank: int) -> list[StepsLine]:
        """Lines of a rank's journal that speak of steps of the stretch."""
        found = self.ranks[rank].journal.steps
        return [line for line in found if line.start < self.end and line.end > self.start]

    def host_of(self, rank: int) -> str | None:
        """Where a rank ran, also one without a journal."""
        if rank in self.ranks:
            return self.ranks[rank].host
        peers = self.header.peers
        return next((p.host for p in peers if p.first_rank <= rank < p.first_rank + p.nproc), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How many of an epoch's samples the covered steps used."""

    epoch: int
    used: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What the journals prove of steps `start` to `end` (without it)."""

    verdict: Verdict
    start: int
    end: int
    samples: int
    stretches: tuple[Stretch, ...]
    uses: tuple[Use, ...]
    findings: tuple[Finding, ...]


def finding_of(
    kind: Kind, what: str, stretch: Stretch, rank: int, *, start: int | None = None, end: int | None = None
) -> Finding:
    """`what` with the rank and its host in front; without steps it is about the whole stretch."""
    host = stretch.host_of(rank)
    return Finding(
        kind=kind,
        text=f"{who(rank, host)}: {what}",
        attempt=stretch.attempt,
        rank=rank,
        host=host,
        start=stretch.start if start is None else start,
        end=stretch.end if end is None else end,
    )


def who(rank: int, host: str | None) -> str:
    """`rank 1 on b`."""
    return f"rank {rank} on {host}" if host else f"rank {rank}"


def steps(start: int, end: int) -> str:
    """`step 4`, or `steps 4-9` where `end` is 10."""
    return f"step {start}" if end - start == 1 else f"steps {start}-{end - 1}"


def damaged_lines(stretch: Stretch, rank: int) -> list[Finding]:
    """Lines of a rank's journal that are not as they were written."""
    return [
        finding_of(Kind.DAMAGED, f"line {number} of its journal is damaged", stretch, rank)
        for number in stretch.ranks[rank].journal.damaged
    ]
