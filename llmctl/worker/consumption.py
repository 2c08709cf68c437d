"""This rank's journal of the samples that it trained on: what was read, not what should have been.

`add` is called for a step that was carried out, with the samples as the loader handed them out. An order of
the journal's own, built from the manifests, foretells them; only a step that differs is written out. Before
a checkpoint of step s is begun, `commit` puts everything up to s on the disk: so no checkpoint is committed
before the journals that belong to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from llmctl.storage.corpus.mixture import open_order
from llmctl.storage.corpus.order import Order, SampleRef
from llmctl.storage.corpus.reader import Reader
from llmctl.wire.consumed import (
    CorpusMark,
    EndLine,
    JournalHeader,
    Line,
    OddStep,
    Origin,
    RefDigest,
    StepsLine,
    fingerprint,
    pack_lengths,
    seal,
)
from llmctl.wire.manifests import CheckpointManifest
from llmctl.wire.parallel import share
from llmctl.wire.recipe import RecipeSpec
from llmctl.wire.specs import NodeSpec, Peer
from llmctl.worker.metrics import say

FLUSH_STEPS = 1000
FLUSH_S = 60.0
"""A line is written after so many steps or seconds: an audit of a running job sees nearly all of it."""

ODD_SAMPLES = 10_000
"""A line with so many samples written out is ended early: it has to be held in memory."""


def open_consumption(
    spec: NodeSpec,
    recipe: RecipeSpec,
    reader: Reader,
    *,
    rank: int,
    ranks: int,
    peers: tuple[Peer, ...],
    path: str,
    found: CheckpointManifest | None,
) -> Consumption:
    """The journal of one data rank's attempt, its header written.

    Args:
        rank, ranks: whose share of each batch this is; tp and pp peers are one data rank.
        peers: the host of each data rank, so that a lost journal can be told to be one's.
        path: the file; its folder is there.
        found: the checkpoint that this attempt goes on from.
    """
    weights = [source.weight for source in spec.corpora]
    header = JournalHeader(
        run_id=spec.run_id,
        attempt=spec.attempt,
        host=spec.host,
        rank=rank,
        world=ranks,
        start=found.step if found else 0,
        seed=recipe.seed,
        sequence_length=recipe.sequence_length,
        global_batch=recipe.global_batch,
        corpora=tuple(
            CorpusMark(
                uri=source.uri,
                weight=source.weight,
                fingerprint=fingerprint(manifest),
                lengths=pack_lengths(shard.tokens for shard in manifest.shards),
            )
            for source, manifest in zip(spec.corpora, reader.manifests, strict=True)
        ),
        peers=peers,
        shares=recipe.shares,
        origin=Origin(found.run_id, found.attempt) if found else None,
    )
    order = open_order(reader.manifests, weights, recipe.sequence_length, recipe.seed)
    return Consumption(path, header, order)


class Consumption:
    """Writes one journal. A disk that is full or away is told once and tried again at the next line: the job
    goes on, and the audit says of what it can't see that it can't."""

    def __init__(self, path: str, header: JournalHeader, order: Order) -> None:
        self._path = path
        self._header = header
        self._order = order
        self._first, self._count = share(header.global_batch, header.rank, header.world, header.shares)
        self._lines: list[Line] = [header]
        self._written = 0
        self._troubled = False
        self._start = self._end = header.start
        self._begin_line()
        self.flush()

    def add(self, step: int, refs: Sequence[SampleRef]) -> None:
        """`step`, from 0, was carried out with `refs`, in this order."""
        if step != self._end:  # a step left out or done twice must not vanish in a line's range
            self._end_line()
            self._start = self._end = step
        if list(refs) != self._order.samples(step, self._header.global_batch, self._first, self._count):
            self._odd.append(OddStep(step=step, refs=tuple(tuple(ref) for ref in refs)))
            self._odd_samples += len(refs)
        self._digest.add(step, refs)
        self._samples += len(refs)
        self._end = step + 1
        is_long = self._end - self._start >= FLUSH_STEPS or self._odd_samples >= ODD_SAMPLES
        if is_long or time.monotonic() - self._began >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what there is; it survives this process, not yet this host."""
        self._end_line()
        self._write(durable=False)

    def commit(self) -> None:
        """Write what there is to the disk; it survives this host's end."""
        self._end_line()
        self._write(durable=True)

    def close(self) -> None:
        """Training has ended in order: no later step is missing."""
        self._end_line()
        self._lines.append(EndLine(step=self._end))
        self._write(durable=True)

    def _begin_line(self) -> None:
        self._start = self._end
        self._began = time.monotonic()
        self._samples = 0
        self._digest = RefDigest()
        self._odd: list[OddStep] = []
        self._odd_samples = 0

    def _end_line(self) -> None:
        if self._end > self._start:
            self._lines.append(
                StepsLine(
                    start=self._start,
                    end=self._end,
                    samples=self._samples,
                    digest=self._digest.value(),
                    odd=tuple(self._odd),
                )
            )
        self._begin_line()

    def _write(self, *, durable: bool) -> None:
        try:
            self._append(b"".join(map(seal, self._lines)), durable=durable)
        except OSError as error:
            if not self._troubled:
                say(f"{self._path}: {error.strerror}; the journal of samples is tried again later")
            self._troubled = True
            return
        self._lines.clear()
        self._troubled = False

    def _append(self, content: bytes, *, durable: bool) -> None:
        """Append all of it or nothing: what an earlier, failed try left behind is cut off first."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.ftruncate(descriptor, self._written)
            done = 0
            while done < len(content):
                done += os.pwrite(descriptor, content[done:], self._written + done)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._written += len(content)
