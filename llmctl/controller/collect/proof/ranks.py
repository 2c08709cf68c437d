"""One stretch, rank by rank: is its journal there, without holes, and do its digests agree with manifest and
seed?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from llmctl.controller.collect.proof.findings import (
    Finding,
    Kind,
    Stretch,
    damaged_lines,
    finding_of,
    steps,
)
from llmctl.controller.collect.proof.lineage import common, foretold, order_of
from llmctl.storage.corpus.order import Order
from llmctl.wire.consumed import JournalHeader, RefDigest, StepsLine

Progress = Callable[[int], None]
"""Called with the number of samples that were just checked."""

Run = Callable[..., Iterable[Any]]
"""`map`, or the same on several processes."""


def check_stretch(
    stretch: Stretch, lost: Mapping[str, str], run: Run, progress: Progress | None
) -> Iterator[Finding]:
    """What speaks against the journals of one stretch, or is missing of them."""
    usable = []
    for rank in range(stretch.header.world):
        header = stretch.ranks[rank].journal.header if rank in stretch.ranks else None
        if header is None:
            yield _no_journal(stretch, rank, lost)
        elif common(header) != stretch.header or header.rank != rank:
            yield _of_another(stretch, rank, header)
        else:
            usable.append(rank)
            yield from _holes(stretch, rank)
    yield from _sums(stretch, usable, run, progress)
    for rank in sorted(set(stretch.ranks) - set(range(stretch.header.world))):
        what = f"has a journal, but attempt {stretch.attempt} had {stretch.header.world} ranks"
        yield finding_of(Kind.FOREIGN, what, stretch, rank)


def _no_journal(stretch: Stretch, rank: int, lost: Mapping[str, str]) -> Finding:
    why = lost.get(stretch.host_of(rank) or "", "it is not there")
    what = f"no journal of attempt {stretch.attempt}: {why}"
    return finding_of(Kind.UNKNOWN, what, stretch, rank)


def _of_another(stretch: Stretch, rank: int, header: JournalHeader) -> Finding:
    """Which setting differs, by name: what was tampered with, or read by one rank only."""
    wanted = stretch.header
    names = [name for name in JournalHeader.__dataclass_fields__ if name not in ("host", "rank")]
    differ = [name for name in names if getattr(header, name) != getattr(wanted, name)]
    if header.rank != rank:
        differ.append(f"rank ({header.rank})")
    return finding_of(Kind.DAMAGED, f"its journal differs in {', '.join(differ)}", stretch, rank)


def _holes(stretch: Stretch, rank: int) -> Iterator[Finding]:
    """Lines that are damaged, steps that no line speaks of, and steps that several lines speak of."""
    yield from damaged_lines(stretch, rank)
    reached = stretch.start
    for line in sorted(stretch.lines(rank), key=lambda line: (line.start, line.end)):
        if line.start > reached:
            yield _silent(stretch, rank, reached, line.start)
        if line.start < reached:
            end = min(line.end, reached)
            what = f"{steps(line.start, end)} stand in its journal twice"
            yield finding_of(Kind.DOUBLED, what, stretch, rank, start=line.start, end=end)
        reached = max(reached, line.end)
    if reached < stretch.end:
        yield _silent(stretch, rank, reached, stretch.end)


def _silent(stretch: Stretch, rank: int, start: int, end: int) -> Finding:
    """Unknown, not missing: the step was carried out by all ranks or by none."""
    what = f"its journal says nothing of {steps(start, end)}"
    return finding_of(Kind.UNKNOWN, what, stretch, rank, start=start, end=end)


def line_agrees(header: JournalHeader, rank: int, line: StepsLine) -> bool:
    """Does the digest of what was read agree with what is foretold and what is written out? The costly part
    of a proof, and good for a process of its own: everything that it needs is in its arguments."""
    order, digest, samples = _order_of(header), RefDigest(), 0
    written = {odd.step: odd.refs for odd in line.odd}
    for step in range(line.start, line.end):
        refs = written[step] if step in written else foretold(header, order, step, rank)
        digest.add(step, refs)
        samples += len(refs)
    return digest.value() == line.digest and samples == line.samples


@lru_cache(maxsize=4)
def _order_of(header: JournalHeader) -> Order:
    return order_of(header)


def _sums(stretch: Stretch, ranks: Sequence[int], run: Run, progress: Progress | None) -> Iterator[Finding]:
    work = [(rank, line) for rank in ranks for line in stretch.lines(rank)]
    results = run(
        line_agrees, [stretch.header] * len(work), [rank for rank, _ in work], [line for _, line in work]
    )
    for (rank, line), agrees in zip(work, results, strict=True):
        if progress is not None:
            progress(line.samples)
        if not agrees:
            what = f"what it read in {steps(line.start, line.end)} is not what manifest and seed give"
            yield finding_of(Kind.ORDER, what, stretch, rank, start=line.start, end=line.end)
