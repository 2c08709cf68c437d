"""`llmctl stop`: end a run everywhere, and prove it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.options import HostsOption, OutputOption, RunArgument, checked_output

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.collect.locate import Located
    from llmctl.controller.transport.pool import Connections
    from llmctl.errors import LlmctlError
    from llmctl.wire.records import StopReport

EPILOG = "Examples:\n\n    llmctl stop demo-7f3a\n\n    llmctl stop demo-7f3a --grace 120"
DEFAULT_GRACE_S = 20.0


def register(app: typer.Typer) -> None:
    app.command("stop", epilog=EPILOG)(stop)


def stop(
    run: RunArgument = None,
    grace: Annotated[
        float, typer.Option("--grace", min=0, help="Seconds between SIGTERM and SIGKILL.")
    ] = DEFAULT_GRACE_S,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask, where no run was named.")] = False,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """End a run on all its hosts: SIGTERM, grace, SIGKILL, then check that nothing of it is left.

    The recipe saves a checkpoint on SIGTERM if the grace time allows. Stopping a run that has ended is fine.
    """
    from llmctl.controller.cli.session import Session

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        located = session.locate(run)
        if run is None and not yes:
            _confirm(session, located.run_id)
        code = _stop(session, located, grace)
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


def _stop(session: Session, located: Located, grace: float) -> int:
    from llmctl.controller.execute.stop import stop as stop_run
    from llmctl.controller.ui.stages import Stages
    from llmctl.controller.ui.stopping import report_line
    from llmctl.errors import HostErrors, LlmctlError
    from llmctl.wire.exitcodes import ExitCode
    from llmctl.wire.records import StopRequest

    connections = session.connect(located.hosts)
    with Stages(session.screen).stage("stop", f"{located.run_id}: SIGTERM, up to {grace:g} s grace"):
        reports = stop_run(
            connections, located.hosts, session.archive, located.run_id, StopRequest(grace_s=grace)
        )
    lost = {name: value for name, value in reports.items() if isinstance(value, LlmctlError)}
    errors = list(lost.values())
    clean = {name: value for name, value in reports.items() if not isinstance(value, LlmctlError)}
    if clean:
        _remember(session, located, connections, lost)
    if session.json:
        session.screen.document("stop", _document(located.run_id, reports))
    else:
        for name, report in clean.items():
            session.screen.result(report_line(name, report))
    if errors:
        raise HostErrors(errors)
    if any(report.left for report in clean.values()):
        return int(ExitCode.INTERNAL)
    if not session.json:
        session.screen.say(f"{located.run_id} is stopped.   llmctl pull {located.run_id}")
    return 0


def _remember(
    session: Session, located: Located, connections: Connections, lost: dict[str, LlmctlError]
) -> None:
    """The new state, where any host has the run at all."""
    from llmctl.controller.collect.status import run_view
    from llmctl.errors import NotFoundError

    try:
        view = run_view(connections, located.hosts, session.archive, located.run_id, lost=lost)
    except NotFoundError:
        return
    session.remember(view, located.hosts)


def _document(run_id: str, reports: dict[str, StopReport | LlmctlError]) -> dict[str, object]:
    from llmctl.errors import LlmctlError
    from llmctl.wire import codec

    hosts = {
        name: {"error": value.message} if isinstance(value, LlmctlError) else codec.encode(value)
        for name, value in reports.items()
    }
    return {"run_id": run_id, "hosts": hosts}
