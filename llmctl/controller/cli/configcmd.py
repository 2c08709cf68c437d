"""`llmctl config validate`: are the files right, and which setting comes from where?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmctl.controller.cli.options import HostsOption, JobOption, OutputOption, checked_output

config_app = typer.Typer(help="Check configuration.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(config_app, name="config")


@config_app.callback()
def _root() -> None:
    """Check configuration."""


@config_app.command("validate", epilog="Example:\n\n    llmctl config validate -f job.yaml")
def validate(
    file: JobOption = None,
    hosts: HostsOption = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Show where each setting of the tool comes from.")
    ] = False,
    output: OutputOption = None,
) -> None:
    """Check the job file and the hosts file without contacting a host; exit 2 at the first mistake."""
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.job import load_job

    session = Session(hosts=hosts, output=checked_output(output))
    path = Path(file or "job.yaml")
    inventory = session.inventory
    checked = [inventory.path]
    if file is not None or path.exists():
        config = session.resolve(load_job(path), path.absolute().parent)
        checked.append(str(path))
        for note in config.notes:
            session.screen.warn(note)
    origins = session.settings.origins
    if session.json:
        session.screen.document("config", {"valid": checked, "settings": origins})
        return
    session.screen.result(f"{' and '.join(checked)}: valid")
    if sources:
        for name, origin in origins.items():
            session.screen.result(f"{name:<18} {getattr(session.settings, name)!s:<40} {origin}")
