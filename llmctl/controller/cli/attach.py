"""`llmctl attach`: see a run that goes on, from any machine with the hosts file."""

from __future__ import annotations

from typing import Annotated

import typer

from llmctl.controller.cli.options import HostsOption, OutputOption, RunArgument, checked_output

EPILOG = "Example:\n\n    llmctl attach demo-7f3a\n\nCtrl-C detaches again; the run goes on."
TAIL_LINES = 20


def register(app: typer.Typer) -> None:
    app.command("attach", epilog=EPILOG)(attach)


def attach(
    run: RunArgument = None,
    logs: Annotated[bool, typer.Option("--logs/--no-logs", help="Show the ranks' output too.")] = False,
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
        display = TrainingView(session.screen, total=total, logs=logs)
        request = FollowRequest(logs=logs, tail=TAIL_LINES)
        try:
            view = follow_to_end(session, connections, located, display, request)
        except KeyboardInterrupt:
            raise typer.Exit(detached(session, located.run_id)) from None
        code = show_verdict(session, view, kind="attach")
    finally:
        session.close()
    raise typer.Exit(code)
