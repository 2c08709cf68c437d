"""Steps that were written out sample by sample: what was left out, used twice, or used in another place."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llmctl.controller.collect.proof.findings import Finding, Kind, Stretch, finding_of, who
from llmctl.controller.collect.proof.lineage import foretold, order_of
from llmctl.storage.corpus.order import Order, SampleRef

SHOWN = 20
"""Samples that are named one by one of each kind; the rest is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a sample was used, or should have been."""

    stretch: Stretch
    rank: int
    step: int

    def told(self, kind: Kind, what: str) -> Finding:
        return finding_of(kind, what, self.stretch, self.rank, start=self.step, end=self.step + 1)

    @property
    def who(self) -> str:
        return who(self.rank, self.stretch.host_of(self.rank))


class OddSteps:
    """Samples that were used where they were not foretold, and the other way round, over all stretches."""

    def __init__(self) -> None:
        self._absent: dict[SampleRef, list[Place]] = defaultdict(list)
        self._extra: dict[SampleRef, list[Place]] = defaultdict(list)
        self._reordered: list[Finding] = []

    def collect(self, stretch: Stretch, order: Order) -> None:
        """Compare each step that any rank wrote out."""
        for rank in sorted(set(stretch.ranks) & set(range(stretch.header.world))):
            for line in stretch.lines(rank):
                for odd in line.odd:
                    if stretch.start <= odd.step < stretch.end:
                        self._compare(Place(stretch=stretch, rank=rank, step=odd.step), odd.refs, order)

    def _compare(self, place: Place, refs: Iterable[tuple[int, ...]], order: Order) -> None:
        used = Counter(SampleRef(*ref) for ref in refs)
        wanted = Counter(foretold(place.stretch.header, order, place.step, place.rank))
        for ref in (wanted - used).elements():
            self._absent[ref].append(place)
        for ref in (used - wanted).elements():
            self._extra[ref].append(place)
        if used == wanted:
            what = f"step {place.step} has its samples in another order"
            self._reordered.append(place.told(Kind.ORDER, what))

    def findings(self, stretches: Sequence[Stretch]) -> list[Finding]:
        """What it comes to, each sample named with its place."""
        known = _covered(stretches, set(self._extra) - set(self._absent))
        found = [*self._reordered]
        for ref in {**self._extra, **self._absent}:
            found += _of_sample(ref, self._absent[ref], self._extra[ref], is_known=ref in known)
        return _shortened(found)


def _of_sample(
    ref: SampleRef, absent: Sequence[Place], extra: Sequence[Place], *, is_known: bool
) -> Iterator[Finding]:
    """One sample: used in another place, used too often, or not used."""
    name = f"sample {f'{ref.corpus}:' if ref.corpus else ''}{ref.shard}:{ref.start}"
    moved = min(len(absent), len(extra))
    for there, here in zip(absent, extra, strict=False):
        whose = "" if there.rank == here.rank else f" ({there.who})"
        what = f"{name} of step {there.step}{whose} was used in step {here.step}"
        yield here.told(Kind.ORDER, what)
    for place in extra[moved:]:
        if is_known or absent:
            yield place.told(Kind.DOUBLED, f"{name} was used in step {place.step} a second time")
        else:
            yield place.told(Kind.FOREIGN, f"{name} of step {place.step} belongs to none of these steps")
    for place in absent[moved:]:
        yield place.told(Kind.MISSING, f"{name} of step {place.step} was not used")


def _covered(stretches: Sequence[Stretch], refs: set[SampleRef]) -> set[SampleRef]:
    """Those of `refs` that a covered step has to use. Costs a look at every sample, so only where needed."""
    known: set[SampleRef] = set()
    if not refs:
        return known
    for stretch in stretches:
        order, batch = order_of(stretch.header), stretch.header.global_batch
        for step in range(stretch.start, stretch.end):
            known.update(refs.intersection(order.samples(step, batch, 0, batch)))
    return known


def _shortened(findings: list[Finding]) -> list[Finding]:
    """The first of each kind, and how many more there are."""
    kept: list[Finding] = []
    counts: Counter[Kind] = Counter()
    for finding in sorted(findings, key=lambda one: (one.start or 0, one.rank or 0)):
        counts[finding.kind] += 1
        if counts[finding.kind] <= SHOWN:
            kept.append(finding)
    more = {kind: count - SHOWN for kind, count in counts.items() if count > SHOWN}
    return kept + [Finding(kind=kind, text=f"{count} more samples: {kind}") for kind, count in more.items()]
