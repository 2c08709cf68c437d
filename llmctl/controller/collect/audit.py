"""`data audit RUN`: fetch the journals of a run and say what they prove.

Journals are kept here, per run, host and attempt: a second audit fetches only what was appended, and the
journals of a host that is lost since then still count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from llmctl.controller.backends.archive import AgentArchive
from llmctl.controller.collect.proof.findings import Finding, Kind, Proof, RankJournal
from llmctl.controller.collect.proof.prove import prove, verdict
from llmctl.controller.collect.proof.ranks import Progress, Run
from llmctl.controller.collect.pull import pull_run
from llmctl.controller.config.types import Host
from llmctl.controller.transport.pool import Connections
from llmctl.errors import HostErrors, IntegrityError, LlmctlError, NotFoundError
from llmctl.storage.corpus.dataset import read_manifest
from llmctl.storage.files import open_store
from llmctl.wire import codec
from llmctl.wire.consumed import CorpusMark, fingerprint, read_journal
from llmctl.wire.specs import NodeSpec

_JOURNAL = re.compile(r"(?:(?P<host>[^/]+)/)?attempt-(?P<attempt>\d{1,9})/consumed-(?P<rank>\d{1,9})\.jsonl")
PARALLEL_SAMPLES = 1_000_000

DEADLINE_S = 15.0
"""For a look at the corpus itself, which is not needed for the proof."""

_FETCHED = re.compile(r"attempt-\d+/consumed-\d+\.jsonl|node\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What is proven of one run, and what could not be looked at without weakening the proof."""

    name: str
    proof: Proof
    notes: tuple[str, ...] = ()


def audit_run(
    connections: Connections,
    hosts: Sequence[Host],
    archive: AgentArchive,
    run_id: str,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> Audit:
    """Fetch what is new of a run's journals into `folder`, and check them.

    Raises:
        HostErrors: no host could be asked, and nothing was fetched before.
        NotFoundError: the run keeps no journals.
    """
    try:
        pulled = pull_run(
            connections, hosts, archive, run_id, folder, checkpoints="none", only=_FETCHED.fullmatch
        )
        errors = list(pulled.errors)
    except HostErrors as error:
        if not any(journals_in(folder)):
            raise
        errors = error.errors
    lost = {error.host: error.message for error in errors if error.host}
    return audit_folder(folder, name=run_id, lost=lost, progress=progress)


def audit_folder(
    folder: Path,
    *,
    name: str | None = None,
    lost: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Check the journals below a folder that `pull` made, or a run's own directory on a host.

    Args:
        lost: hosts that could not be asked, and why.

    Raises:
        NotFoundError: there are none.
    """
    name = name or str(folder)
    journals = list(journals_in(folder))
    specs = _specs(folder)
    if not journals and not lost:
        raise _without_journals(name, specs)
    with _runner(journals) as run:
        proof = prove(journals, lost=lost, run=run, progress=progress)
    notes = [*_origin(proof)]
    marks = proof.stretches[-1].header.corpora if proof.stretches else ()
    findings, compared = compare_corpora(marks)
    notes += compared
    last = max((spec.attempt for spec in specs), default=0)
    if last > max((found.attempt for found in journals), default=0):
        notes.append(f"attempt {last} has left no journal: it has not trained yet, or never did")
    findings = [*proof.findings, *findings]
    proof = replace(proof, verdict=verdict(proof.stretches, findings), findings=tuple(findings))
    return Audit(name=name, proof=proof, notes=tuple(notes))


@contextmanager
def _runner(journals: Sequence[RankJournal]) -> Iterator[Run]:
    """`map`; for a long run on all cores. Each sample costs some microseconds."""
    samples = sum(line.samples for found in journals for line in found.journal.steps)
    if samples < PARALLEL_SAMPLES:
        yield map
        return
    # Not forked: this process has threads.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        yield pool.map


def _origin(proof: Proof) -> Iterator[str]:
    """A run that went on from another one's checkpoint covers only its own part."""
    first = proof.stretches[0].header if proof.stretches else None
    if first is None or first.start == 0:
        return
    if first.origin is not None and first.origin.run_id != first.run_id:
        run = first.origin.run_id
        yield f"it went on from checkpoint {first.start} of {run}; the steps before: llmctl data audit {run}"


def _without_journals(name: str, specs: Sequence[NodeSpec]) -> NotFoundError:
    if specs and specs[0].job.get("train", {}).get("script") is not None:
        return NotFoundError(
            f"{name} runs a script of its own, which keeps no journals of its samples",
            hint="only the built-in recipe writes them",
        )
    return NotFoundError(f"{name} has no journals of its samples", hint="they begin with the first step")


def _specs(folder: Path) -> list[NodeSpec]:
    """What the hosts were told, as far as it can be read."""
    found = []
    for path in (*folder.glob("node.json"), *sorted(folder.glob("*/node.json"))):
        try:
            found.append(codec.loads(NodeSpec, path.read_bytes()))
        except IntegrityError:
            continue
    return found


def journals_in(folder: Path) -> Iterator[RankJournal]:
    """Every journal below a run's folder, in order of their paths."""
    for path in sorted(folder.glob("**/attempt-*/consumed-*.jsonl")):
        match = _JOURNAL.fullmatch(path.relative_to(folder).as_posix())
        if match is None:
            continue
        journal = read_journal(path.read_bytes())
        own = journal.header.host if journal.header else ""
        yield RankJournal(
            host=match["host"] or own,
            attempt=int(match["attempt"]),
            rank=int(match["rank"]),
            journal=journal,
        )


def compare_corpora(marks: Sequence[CorpusMark]) -> tuple[list[Finding], list[str]]:
    """Is what lies in the store now what was trained on? A store that can't be read from here is a note:
    the journals carry what the proof needs."""
    findings, notes = [], []
    for mark in marks:
        try:
            same = fingerprint(read_manifest(open_store(mark.uri, deadline_s=DEADLINE_S))) == mark.fingerprint
        except LlmctlError as error:
            notes.append(f"not compared with the corpus itself: {error.message}")
            continue
        if same:
            notes.append(f"{mark.uri} still is what was trained on")
        else:
            text = f"{mark.uri} is not the corpus any more that was trained on"
            findings.append(Finding(kind=Kind.CORPUS, text=text))
    return findings, notes
