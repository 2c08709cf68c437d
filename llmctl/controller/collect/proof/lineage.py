"""Which attempt counts for which step, and what it had to do there."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from llmctl.controller.collect.proof.findings import (
    Finding,
    Kind,
    RankJournal,
    Stretch,
    damaged_lines,
    who,
)
from llmctl.storage.corpus.mixture import open_order
from llmctl.storage.corpus.order import Order, SampleRef
from llmctl.wire.consumed import JournalHeader, shard_tokens
from llmctl.wire.manifests import FileEntry, ShardEntry, ShardManifest
from llmctl.wire.parallel import share


def lineage(journals: Iterable[RankJournal], findings: list[Finding]) -> list[Stretch]:
    """The stretches that count, in order of steps: the newest attempt's, and below its first step those of
    the attempt that wrote the checkpoint it began with, and so on."""
    attempts: dict[int, dict[int, RankJournal]] = defaultdict(dict)
    for found in journals:
        attempts[found.attempt][found.rank] = found
        findings += _headless(found)
    headers = {attempt: header for attempt in attempts if (header := _header(attempts[attempt]))}
    stretches: list[Stretch] = []
    attempt = max(headers, default=None)
    end = _reached(attempts[attempt].values()) if attempt is not None else 0
    while attempt is not None:
        header, ranks = headers[attempt], attempts[attempt]
        covered = max(end, header.start)
        one = Stretch(attempt=attempt, start=header.start, end=covered, header=header, ranks=ranks)
        if covered > header.start:
            stretches.append(one)
        else:  # it proves nothing, and perhaps only because of these
            findings += [finding for rank in sorted(ranks) for finding in damaged_lines(one, rank)]
        end = header.start
        attempt = _before(attempt, headers, findings)
    return stretches[::-1]


def _before(attempt: int, headers: Mapping[int, JournalHeader], findings: list[Finding]) -> int | None:
    """The attempt whose checkpoint `attempt` began with; None where the run itself began there."""
    header = headers[attempt]
    if header.start == 0 or (header.origin and header.origin.run_id != header.run_id):
        return None
    if header.origin is None:
        earlier = [number for number in headers if number < attempt]
        return max((number for number in earlier if headers[number].start < header.start), default=None)
    if header.origin.attempt in headers and header.origin.attempt < attempt:
        return header.origin.attempt
    text = f"attempt {header.origin.attempt} led to step {header.start} and left no journal"
    findings.append(
        Finding(kind=Kind.UNKNOWN, text=text, attempt=header.origin.attempt, start=0, end=header.start)
    )
    return None


def _header(ranks: Mapping[int, RankJournal]) -> JournalHeader | None:
    """What most ranks of an attempt say of it."""
    headers = [common(found.journal.header) for found in ranks.values() if found.journal.header]
    return Counter(headers).most_common(1)[0][0] if headers else None


def common(header: JournalHeader) -> JournalHeader:
    """What all ranks of one attempt must agree on."""
    return replace(header, host="", rank=0)


def _headless(found: RankJournal) -> list[Finding]:
    """A journal of which nobody can say what it is about; one that was torn in its header says nothing."""
    if found.journal.header is not None or not (found.journal.steps or found.journal.damaged):
        return []
    text = f"{who(found.rank, found.host)}: its journal of attempt {found.attempt} has no readable header"
    return [Finding(kind=Kind.DAMAGED, text=text, attempt=found.attempt, rank=found.rank, host=found.host)]


def _reached(ranks: Iterable[RankJournal]) -> int:
    """How far the newest attempt's journals speak: to its end, or, while it goes on or where it was killed,
    to the step that all of them have written down."""
    journals = [found.journal for found in ranks]
    ends = [journal.ended for journal in journals if journal.ended is not None]
    if ends:
        return max(ends)
    return min(
        max((line.end for line in journal.steps), default=journal.header.start)
        for journal in journals
        if journal.header is not None
    )


def order_of(header: JournalHeader) -> Order:
    """The order that an attempt had to follow. Raises LlmctlError for a header that can't be."""
    none = FileEntry("", 0, "")
    manifests = [
        ShardManifest(
            dtype="",
            vocab_size=0,
            eos=0,
            tokenizer="",
            tokens=0,
            documents=0,
            shards=tuple(ShardEntry("", tokens, 0, none, none) for tokens in shard_tokens(mark)),
        )
        for mark in header.corpora
    ]
    weights = [mark.weight for mark in header.corpora]
    return open_order(manifests, weights, header.sequence_length, header.seed)


def foretold(header: JournalHeader, order: Order, step: int, rank: int) -> list[SampleRef]:
    """The samples that `rank` had to use in `step`, in order."""
    first, count = share(header.global_batch, rank, header.world, header.shares)
    return order.samples(step, header.global_batch, first, count)
