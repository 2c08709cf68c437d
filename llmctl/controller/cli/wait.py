"""`llmctl wait`: block until a run has its verdict; for scripts and CI."""

from __future__ import annotations

from typing import Annotated

import typer

from llmctl.controller.cli.options import HostsOption, OutputOption, RunArgument, checked_output

EPILOG = "Example:\n\n    run=$(llmctl train -d -f job.yaml) && llmctl wait $run --timeout 3600"


def register(app: typer.Typer) -> None:
    app.command("wait", epilog=EPILOG)(wait)


def wait(
    run: RunArgument = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, help="Give up after so many seconds (exit 124).")
    ] = None,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Wait for a run to end; the exit code is its verdict: 0, 100 failed, 103 stopped, 124 timeout.

    A lost connection is waited out: only the hosts' own word ends the wait. Ctrl-C ends the wait only.
    """
    from llmctl.controller.cli.following import Silent, follow_to_end
    from llmctl.controller.cli.session import Session
    from llmctl.controller.cli.verdict import detached, show_verdict
    from llmctl.controller.ui.stages import Stages
    from llmctl.wire.records import FollowRequest

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        located = session.locate(run)
        connections = session.connect(located.hosts)
        display = Silent(located.run_id, timeout)
        try:
            with Stages(session.screen).stage("wait", f"for {located.run_id}; Ctrl-C ends the wait only"):
                view = follow_to_end(session, connections, located, display, FollowRequest())
        except KeyboardInterrupt:
            raise typer.Exit(detached(session, located.run_id)) from None
        code = show_verdict(session, view, kind="wait")
    finally:
        session.close()
    raise typer.Exit(code)
