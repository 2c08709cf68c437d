"""`llmctl pull`: logs, metrics and checkpoints to this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmctl.controller.cli.options import HostsOption, OutputOption, RunArgument, checked_output

EPILOG = (
    "Examples:\n\n    llmctl pull demo-7f3a\n\n    llmctl pull demo-7f3a --checkpoints all --dest runs/demo"
)


def register(app: typer.Typer) -> None:
    app.command("pull", epilog=EPILOG)(pull)


def pull(
    run: RunArgument = None,
    dest: Annotated[
        Path | None, typer.Option("--dest", metavar="DIR", help="Else ./llmctl-runs/<run>.")
    ] = None,
    checkpoints: Annotated[
        str, typer.Option("--checkpoints", metavar="WHICH", help="none, last or all.")
    ] = "last",
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Bring back what is missing here: new log lines, and checkpoints verified by their hashes.

    An interrupted pull goes on where it was. Also works while the run goes on.
    """
    from llmctl.controller.cli.pulling import FOLDER, own_folder, pull_home
    from llmctl.controller.cli.session import Session
    from llmctl.controller.ui.stages import Stages
    from llmctl.errors import ConfigError, HostErrors

    if checkpoints not in ("none", "last", "all"):
        raise ConfigError(f"--checkpoints must be none, last or all, found {checkpoints!r}")
    session = Session(hosts=hosts, output=checked_output(output))
    try:
        located = session.locate(run)
        connections = session.connect(located.hosts)
        folder = dest or own_folder(Path(FOLDER)) / located.run_id
        pulled = pull_home(
            session, connections, located, Stages(session.screen), which=checkpoints, dest=folder
        )
        if session.json:
            counts = {"files": pulled.files, "bytes": pulled.bytes}
            names = list(pulled.checkpoints)
            session.screen.document("pull", {"run_id": located.run_id, **counts, "checkpoints": names})
        if pulled.errors:
            raise HostErrors(list(pulled.errors))
    finally:
        session.close()
