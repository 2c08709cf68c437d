"""The journals of all ranks of all attempts -> was every sample of the covered steps used exactly once?

An attempt that began at step r puts an end to what earlier attempts did from r on. What remains is the run's
lineage: for each step one attempt, whose ranks together must have used exactly the samples that manifest and
seed give that step. All of it is foretold here anew and compared with the digests of what was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from llmctl.controller.collect.proof.findings import (
    Finding,
    Kind,
    Proof,
    RankJournal,
    Stretch,
    Use,
    Verdict,
    steps,
)
from llmctl.controller.collect.proof.lineage import lineage, order_of
from llmctl.controller.collect.proof.ranks import Progress, Run, check_stretch
from llmctl.controller.collect.proof.samples import OddSteps
from llmctl.errors import LlmctlError
from llmctl.wire.consumed import JournalHeader, shard_tokens


def prove(
    journals: Iterable[RankJournal],
    *,
    lost: Mapping[str, str] | None = None,
    run: Run = map,
    progress: Progress | None = None,
) -> Proof:
    """Check everything. Never raises: whatever is wrong with a journal is a finding.

    Args:
        lost: hosts whose journals could not be fetched, and why.
        run: how many pieces of independent work are done: `map`, or that of a pool of processes.
    """
    findings: list[Finding] = []
    journals = list(journals)
    stretches = lineage(journals, findings)
    odd = OddSteps()
    try:
        for stretch in stretches:
            odd.collect(stretch, order_of(stretch.header))
            findings += check_stretch(stretch, lost or {}, run, progress)
        findings += odd.findings(stretches)
        findings += _seams(stretches)
        findings += _unheard(journals, stretches, lost or {})
        uses = tuple(_uses(stretches))
    except LlmctlError as error:
        findings.append(Finding(kind=Kind.DAMAGED, text=f"a journal's header can't be: {error.message}"))
        uses = ()
    return Proof(
        verdict=verdict(stretches, findings),
        start=min((stretch.start for stretch in stretches), default=0),
        end=max((stretch.end for stretch in stretches), default=0),
        samples=sum((s.end - s.start) * s.header.global_batch for s in stretches),
        stretches=tuple(stretches),
        uses=uses,
        findings=tuple(findings),
    )


def verdict(stretches: Sequence[Stretch], findings: Sequence[Finding]) -> Verdict:
    """What the findings come to; nothing that is covered proves nothing."""
    if any(finding.kind is not Kind.UNKNOWN for finding in findings):
        return Verdict.FAILED
    return Verdict.INCOMPLETE if findings or not stretches else Verdict.OK


def _seams(stretches: Sequence[Stretch]) -> Iterator[Finding]:
    """An attempt that changed the order goes on in another stream than the one before it."""
    for before, after in pairwise(stretches):
        changed = [name for name in _ORDER if getattr(before.header, name) != getattr(after.header, name)]
        if _marks(before.header) != _marks(after.header):
            changed.append("the corpus")
        if changed:
            text = (
                f"attempt {after.attempt} changed {', '.join(changed)} at step {after.start}: "
                "samples may repeat or be left out there"
            )
            yield Finding(kind=Kind.ORDER, text=text, attempt=after.attempt, start=after.start, end=after.end)
        if before.end < after.start:
            text = f"no attempt's journals speak of {steps(before.end, after.start)}"
            yield Finding(kind=Kind.UNKNOWN, text=text, start=before.end, end=after.start)


def _unheard(
    journals: Sequence[RankJournal], stretches: Sequence[Stretch], lost: Mapping[str, str]
) -> Iterator[Finding]:
    """Hosts that no journal knows: a later attempt may have been theirs, and undo what counts here."""
    known = {found.host for found in journals}
    known.update(peer.host for stretch in stretches for peer in stretch.header.peers)
    for host in sorted(set(lost) - known):
        yield Finding(kind=Kind.UNKNOWN, text=f"{host}: no journal of any attempt: {lost[host]}", host=host)


_ORDER = ("seed", "sequence_length", "global_batch")


def _marks(header: JournalHeader) -> list[tuple[str, float]]:
    return [(mark.fingerprint, mark.weight) for mark in header.corpora]


def _uses(stretches: Sequence[Stretch]) -> Iterator[Use]:
    """How much of each epoch the covered steps used; a mixture's corpora have epochs of their own."""
    if not stretches or len(stretches[-1].header.corpora) != 1:
        return
    last = stretches[-1].header
    size = sum(max(0, tokens - 1) // last.sequence_length for tokens in shard_tokens(last.corpora[0]))
    start, end = stretches[0].start * last.global_batch, stretches[-1].end * last.global_batch
    for epoch in range(start // size, -(-end // size)):
        used = min(end, (epoch + 1) * size) - max(start, epoch * size)
        yield Use(epoch=epoch, used=used, of=size)
