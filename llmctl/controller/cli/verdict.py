"""The last words of a verb that followed a run: the verdict, or that it goes on without us."""

from __future__ import annotations

from llmctl.controller.cli.following import detach_hint
from llmctl.controller.cli.session import Session
from llmctl.controller.collect.view import RunView
from llmctl.wire.exitcodes import ExitCode


def show_verdict(session: Session, view: RunView, *, kind: str) -> int:
    """Print how the run ended; its exit code."""
    from llmctl.controller.ui.runs import verdict_lines

    if session.json:
        session.screen.document(kind, {"run": view, "exit_code": int(view.verdict)})
    else:
        for line in verdict_lines(view):
            session.screen.result(line)
    return int(view.verdict)


def detached(session: Session, run_id: str) -> int:
    """Ctrl-C while following: say how to come back. The run never notices."""
    if session.json:
        session.screen.document("detached", {"run_id": run_id, "exit_code": int(ExitCode.DETACHED)})
    session.screen.say(f"\ndetached; {run_id} goes on.   {detach_hint(run_id)}")
    return int(ExitCode.DETACHED)
