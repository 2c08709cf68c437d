"""`llmctl stop`: end a run everywhere, and prove it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.options import HostsOption, OutputOption, RunArgument, checked_output

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.collect.locate import Located
    from llmctl.controller.collect.view import RunView
    from llmctl.controller.transport.pool import Connections
    from llmctl.errors import LlmctlError
    from llmctl.wire.records import StopReport

EPILOG = (
    "Examples:\n\n    llmctl stop demo-7f3a\n\n    llmctl stop demo-7f3a --checkpoint\n\n"
    "    llmctl stop demo-7f3a --grace 120"
)
DEFAULT_GRACE_S = 20.0
CHECKPOINT_GRACE_S = 300.0


def register(app: typer.Typer) -> None:
    app.command("stop", epilog=EPILOG)(stop)


def stop(
    run: RunArgument = None,
    grace: Annotated[
        float | None,
        typer.Option(
            "--grace", min=0, help="Seconds between SIGTERM and SIGKILL; 20, or 300 for --checkpoint."
        ),
    ] = None,
    checkpoint: Annotated[
        bool,
        typer.Option(
            "--checkpoint", help="Save a last checkpoint first; exit 124 if there was no time for it."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask, where no run was named.")] = False,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """End a run on all its hosts: SIGTERM, grace, SIGKILL, then check that nothing of it is left.

    The recipe saves a checkpoint on SIGTERM if it thinks that the grace time allows; with --checkpoint it
    does in any case, and only then are launchers asked to end. Stopping a run that has ended is fine.

    A host that can't be reached is named (exit 11), and told when `llmctl status` or `stop` next reaches it.
    """
    from llmctl.controller.cli.session import Session

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        located = session.locate(run)
        if run is None and not yes:
            _confirm(session, located.run_id)
        seconds = grace if grace is not None else CHECKPOINT_GRACE_S if checkpoint else DEFAULT_GRACE_S
        code = _stop(session, located, seconds, checkpoint=checkpoint)
    finally:
        session.close()
    raise typer.Exit(code)


def _confirm(session: Session, run_id: str) -> None:
    from llmctl.errors import ConfigError
    from llmctl.wire.exitcodes import ExitCode

    if not session.interactive:
        raise ConfigError(f"no run was named; the newest is {run_id}", hint=f"llmctl stop {run_id}")
    if not typer.confirm(f"stop {run_id}?", err=True):
        session.screen.say(f"{run_id} goes on")
        raise typer.Exit(ExitCode.CANCELLED)


def _stop(session: Session, located: Located, grace: float, *, checkpoint: bool) -> int:
    from llmctl.controller.cli.owed import owe
    from llmctl.controller.execute.stop import stop as stop_run
    from llmctl.controller.ui.stages import Stages
    from llmctl.controller.ui.stopping import report_line
    from llmctl.errors import HostErrors, LlmctlError
    from llmctl.wire.exitcodes import ExitCode
    from llmctl.wire.records import StopRequest

    connections = session.connect(located.hosts)
    with Stages(session.screen).stage("stop", f"{located.run_id}: SIGTERM, up to {grace:g} s grace"):
        reports = stop_run(
            connections,
            located.hosts,
            session.archive,
            located.run_id,
            StopRequest(grace_s=grace, checkpoint=checkpoint),
        )
    lost = {name: value for name, value in reports.items() if isinstance(value, LlmctlError)}
    errors = list(lost.values())
    clean = {name: value for name, value in reports.items() if not isinstance(value, LlmctlError)}
    view = _remember(session, located, connections, lost) if clean else None
    owe(session, located.run_id, sorted(lost))
    if session.json:
        session.screen.document("stop", _document(located.run_id, reports))
    else:
        for name, report in clean.items():
            session.screen.result(report_line(name, report))
    if errors:
        for name in lost:
            session.screen.warn(
                f"{name} has not heard of the stop; `llmctl status` tells it at the next contact"
            )
        raise HostErrors(errors)
    if any(report.left for report in clean.values()):
        return int(ExitCode.INTERNAL)
    if not session.json:
        session.screen.say(f"{located.run_id} is stopped.   llmctl pull {located.run_id}")
    return _checkpoint_code(session, view) if checkpoint and view is not None else 0


def _checkpoint_code(session: Session, view: RunView) -> int:
    """Whether the last step is in a checkpoint; a run that was over before has what it has."""
    from llmctl.wire.exitcodes import ExitCode
    from llmctl.wire.states import RunState

    if view.state is not RunState.CANCELLED or view.step is None or view.checkpoint_step == view.step:
        return 0
    last = "there is none" if view.checkpoint_step is None else f"the last is {view.checkpoint_step}"
    session.screen.warn(
        f"no checkpoint of step {view.step}; {last}: more --grace, or llmctl logs {view.run_id}"
    )
    return int(ExitCode.TIMEOUT)


def _remember(
    session: Session, located: Located, connections: Connections, lost: dict[str, LlmctlError]
) -> RunView | None:
    """The new state, where any host has the run at all."""
    from llmctl.controller.collect.status import run_view
    from llmctl.errors import NotFoundError

    try:
        view = run_view(connections, located.hosts, session.archive, located.run_id, lost=lost)
    except NotFoundError:
        return None
    session.remember(view, located.hosts)
    return view


def _document(run_id: str, reports: dict[str, StopReport | LlmctlError]) -> dict[str, object]:
    from llmctl.errors import LlmctlError
    from llmctl.wire import codec

    hosts = {
        name: {"error": value.message} if isinstance(value, LlmctlError) else codec.encode(value)
        for name, value in reports.items()
    }
    return {"run_id": run_id, "hosts": hosts}
