"""The half of `llmctl data audit` that is about a run: its journals, fetched and proven."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.controller.cli.session import Session
from llmctl.errors import IntegrityError, NotFinishedError, NotFoundError

if TYPE_CHECKING:
    from llmctl.controller.collect.audit import Audit

JOURNALS = "journals"
"""Folder of fetched journals in our own state."""


def is_run(target: str) -> bool:
    """Whether `target` means a run (its id, the start of it, a name) or the folder of one, not a data set."""
    if "://" in target:
        return False
    path = Path(target).expanduser()
    if path.is_dir():
        from llmctl.controller.collect.audit import journals_in

        return any(journals_in(path)) or any(path.glob("*/node.json")) or (path / "node.json").is_file()
    return "/" not in target and not path.exists()


def audit_of_run(session: Session, target: str) -> None:
    """Print what is proven of a run.

    Raises:
        NotFinishedError: there is nothing to prove yet.
        IntegrityError: it is not proven that each sample was used exactly once.
    """
    from llmctl.controller.collect.proof.findings import Verdict
    from llmctl.controller.ui.auditing import audit_document, audit_lines
    from llmctl.controller.ui.stages import Stages

    with Stages(session.screen).stage("audit", target) as shown:
        audit = _audit(session, target, lambda count: shown.count(count, "samples"))
    if session.json:
        session.screen.document("audit", audit_document(audit))
    else:
        for line in audit_lines(audit):
            session.screen.result(line)
    if not audit.proof.stretches and not audit.proof.findings:
        hint = "they are written at each checkpoint and once a minute"
        raise NotFinishedError(f"{audit.name}: its journals cover no step yet", hint=hint)
    if audit.proof.verdict is Verdict.FAILED:
        count = len(audit.proof.findings)
        raise IntegrityError(f"{audit.name}: {count} finding{'s' * (count != 1)} against its samples")
    if audit.proof.verdict is Verdict.INCOMPLETE:
        hint = "journals lie on the hosts, in attempt-*/; ask again when all of them answer"
        raise IntegrityError(f"{audit.name}: the proof is incomplete", hint=hint)


def _audit(session: Session, target: str, progress: Callable[[int], None]) -> Audit:
    from llmctl.controller.collect.audit import audit_folder, audit_run

    path = Path(target).expanduser()
    if path.is_dir():
        return audit_folder(path, progress=progress)
    try:
        located = session.locate(target)
    except NotFoundError as error:
        raise NotFoundError(f"{target} is no folder here, and {error.message}", hint=error.hint) from None
    folder = session.cache / JOURNALS / located.run_id
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    connections = session.connect(located.hosts)
    return audit_run(connections, located.hosts, session.archive, located.run_id, folder, progress=progress)
