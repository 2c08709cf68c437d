"""`llmctl attach`: see a run that goes on, from any machine with the hosts file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.options import HostsOption, OutputOption, RunArgument, checked_output

if TYPE_CHECKING:
    from llmctl.controller.collect.locate import Located

EPILOG = "Example:\n\n    llmctl attach demo-7f3a\n\nCtrl-C detaches again; the run goes on."
TAIL_LINES = 20


def register(app: typer.Typer) -> None:
    app.command("attach", epilog=EPILOG)(attach)


def attach(
    run: RunArgument = None,
    logs: Annotated[
        bool | None,
        typer.Option("--logs/--no-logs", help="Show the ranks' output; else only for scripts."),
    ] = None,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Follow a run to its end, as `train` does; the exit code is its verdict."""
    from llmctl.controller.cli.following import follow_to_end
    from llmctl.controller.cli.session import Session
    from llmctl.controller.cli.verdict import detached, show_verdict
    from llmctl.controller.ui.training import TrainingView
    from llmctl.wire.records import FollowRequest

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        located = session.locate(run)
        connections = session.connect(located.hosts)
        total = located.record.total if located.record else None
        shown = _is_script(located) if logs is None else logs
        names = [host.name for host in located.hosts]
        display = TrainingView(session.screen, total=total, logs=shown, hosts=names)
        request = FollowRequest(logs=shown, tail=TAIL_LINES)
        try:
            view = follow_to_end(session, connections, located, display, request)
        except KeyboardInterrupt:
            raise typer.Exit(detached(session, located.run_id)) from None
        code = show_verdict(session, view, kind="attach")
    finally:
        session.close()
    raise typer.Exit(code)


def _is_script(located: Located) -> bool:
    """A script of the user's may write no metrics: its output is all there is. Unknown counts as one."""
    job = located.record.job if located.record else {}
    return not job or "script" in job.get("train", {})
