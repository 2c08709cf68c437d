"""Runs that only read: ranks with a real loader's order and a real journal, without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.controller.collect.audit import journals_in
from llmctl.controller.collect.proof.findings import Proof
from llmctl.controller.collect.proof.prove import prove
from llmctl.storage.corpus.mixture import open_order
from llmctl.storage.corpus.order import Order, SampleRef
from llmctl.wire.consumed import CorpusMark, JournalHeader, Origin, fingerprint, pack_lengths
from llmctl.wire.manifests import FileEntry, ShardEntry, ShardManifest
from llmctl.wire.parallel import share
from llmctl.wire.specs import Peer
from llmctl.worker.consumption import Consumption

Fault = Callable[[int, int, list[SampleRef]], list[SampleRef]]
"""(step, rank, what the order gives) -> what a faulty loader hands out."""


def honest(_step: int, _rank: int, refs: list[SampleRef]) -> list[SampleRef]:
    return refs


def corpus(lengths: Sequence[int], name: str = "c") -> ShardManifest:
    """A manifest of shards of these many tokens."""
    none = FileEntry("", 0, name)
    shards = tuple(ShardEntry(f"{name}{i}", tokens, 1, none, none) for i, tokens in enumerate(lengths))
    return ShardManifest("uint16", 257, 256, "bytes", sum(lengths), len(lengths), shards)


@dataclass(kw_only=True)
class Run:
    """A run's folder as `pull` makes it. Every host has one rank."""

    folder: Path
    manifests: Sequence[ShardManifest] = (corpus([101, 57, 83]),)
    batch: int = 5
    seed: int = 3
    length: int = 4

    def attempt(
        self,
        number: int,
        world: int,
        start: int,
        end: int,
        *,
        every: int = 10,
        ends: bool = True,
        fault: Fault = honest,
        origin: int | None = None,
    ) -> None:
        """Steps `start` to `end`, a checkpoint after each `every`; `ends`: in order, not by kill -9."""
        order = self.order()
        for rank in range(world):
            self.path(number, rank).parent.mkdir(parents=True, exist_ok=True)
            journal = self.open(number, world=world, rank=rank, start=start, origin=origin)
            first, count = share(self.batch, rank, world)
            for step in range(start, end):
                journal.add(step, fault(step, rank, order.samples(step, self.batch, first, count)))
                if (step + 1) % every == 0:
                    journal.commit()
            if ends:
                journal.close()

    def order(self) -> Order:
        return open_order(self.manifests, [1.0] * len(self.manifests), self.length, self.seed)

    def open(
        self, number: int, *, world: int, rank: int, start: int = 0, origin: int | None = None
    ) -> Consumption:
        """A rank's journal, to be written by hand."""
        header = self._header(number, world, rank, start, origin)
        return Consumption(str(self.path(number, rank)), header, self.order())

    def path(self, attempt: int, rank: int) -> Path:
        return self.folder / f"h{rank}" / f"attempt-{attempt}" / f"consumed-{rank}.jsonl"

    def prove(self, **more: dict[str, str]) -> Proof:
        return prove(journals_in(self.folder), **more)

    def _header(self, number: int, world: int, rank: int, start: int, origin: int | None) -> JournalHeader:
        return JournalHeader(
            run_id="demo-7f3a",
            attempt=number,
            host=f"h{rank}",
            rank=rank,
            world=world,
            start=start,
            seed=self.seed,
            sequence_length=self.length,
            global_batch=self.batch,
            corpora=tuple(
                CorpusMark(
                    uri="nowhere",
                    weight=1.0,
                    fingerprint=fingerprint(manifest),
                    lengths=pack_lengths(shard.tokens for shard in manifest.shards),
                )
                for manifest in self.manifests
            ),
            peers=tuple(Peer(f"h{i}", "127.0.0.1", i, 1, i) for i in range(world)),
            origin=Origin("demo-7f3a", origin) if origin else None,
        )


def kinds(proof: Proof) -> set[str]:
    return {str(finding.kind) for finding in proof.findings}


def told(proof: Proof) -> str:
    return "\n".join(finding.text for finding in proof.findings)
