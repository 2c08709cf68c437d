"""How an audit of a run is shown: a sentence, the attempts, and every finding by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmctl.controller.collect.audit import Audit
from llmctl.controller.collect.proof.findings import Proof, Stretch, Use, Verdict


def audit_lines(audit: Audit) -> Iterator[str]:
    """The proof for people."""
    proof = audit.proof
    yield summary(proof)
    if len(proof.stretches) > 1 or proof.findings:
        for stretch in proof.stretches:
            yield f"  attempt {stretch.attempt}  {_attempt(stretch)}"
    for use in proof.uses:
        yield f"epoch {use.epoch} is {percent(use)} % used"
    for finding in proof.findings:
        yield f"  {finding.kind:<8} {finding.text}"
    yield from audit.notes


def summary(proof: Proof) -> str:
    """`steps 0-199: 3,200 samples, each exactly once (2 attempts, 2 then 3 ranks)`."""
    if proof.end == proof.start:
        return "no steps"
    said = {
        Verdict.OK: f"{proof.samples:,} samples, each exactly once",
        Verdict.INCOMPLETE: f"{proof.samples:,} samples, not proven: journals are missing",
        Verdict.FAILED: f"{proof.samples:,} samples, not each exactly once",
    }[proof.verdict]
    if proof.uses and len(proof.uses) > 1 and proof.verdict is Verdict.OK:
        said += " per epoch"
    count = len(proof.stretches)
    worlds = " then ".join(str(world) for world in _changes(proof))
    attempts = f"{count} attempts, " if count > 1 else ""
    ranks = "rank" if worlds == "1" else "ranks"
    return f"steps {proof.start}-{proof.end - 1}: {said} ({attempts}{worlds} {ranks})"


def audit_document(audit: Audit) -> dict[str, Any]:
    """The proof for machines."""
    proof = audit.proof
    return {
        "run": audit.name,
        "verdict": proof.verdict,
        "start": proof.start,
        "end": proof.end,
        "samples": proof.samples,
        "attempts": [
            {
                "attempt": stretch.attempt,
                "start": stretch.start,
                "end": stretch.end,
                "ranks": stretch.header.world,
                "hosts": [peer.host for peer in stretch.header.peers],
            }
            for stretch in proof.stretches
        ],
        "epochs": proof.uses,
        "findings": proof.findings,
        "notes": audit.notes,
    }


def percent(use: Use) -> int:
    """Rounded, but never to nothing used or all used where that is not so."""
    if use.used in (0, use.of):
        return 100 * (use.used == use.of)
    return min(99, max(1, round(100 * use.used / use.of)))


def _attempt(stretch: Stretch) -> str:
    hosts = ", ".join(peer.host for peer in stretch.header.peers)
    where = f" on {hosts}" if hosts else ""
    world = stretch.header.world
    return f"steps {stretch.start}-{stretch.end - 1}  {world} rank{'s' * (world != 1)}{where}"


def _changes(proof: Proof) -> list[int]:
    """World sizes, each named once until it changes."""
    worlds = [stretch.header.world for stretch in proof.stretches]
    return [world for i, world in enumerate(worlds) if i == 0 or worlds[i - 1] != world]
