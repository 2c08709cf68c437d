"""`llmctl hosts import`: a hosts file of what is there already."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

EPILOG = (
    "Examples:\n\n"
    "    llmctl hosts import hostfile > hosts.yaml          (lines like: hostA slots=8)\n\n"
    "    llmctl hosts import ~/.ssh/config -w hosts.yaml"
)


def register(app: typer.Typer) -> None:
    app.command("import", epilog=EPILOG)(import_)


def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A hostfile, or an ssh config.")],
    write: Annotated[
        Path | None, typer.Option("--write", "-w", metavar="FILE", help="Write there; else to stdout.")
    ] = None,
    pool: Annotated[str, typer.Option("--pool", metavar="NAME", help="Name of the pool.")] = "main",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Make a hosts file of an MPI or DeepSpeed hostfile, or of the hosts in an ssh config."""
    from llmctl.controller.config.imports import import_file, render_hosts
    from llmctl.errors import ConfigError

    text = render_hosts(import_file(source), pool=pool, origin=str(source))
    if write is None:
        sys.stdout.write(text)
        return
    if write.exists() and not force:
        raise ConfigError(f"{write} is already there", hint="--force replaces it")
    beside = write.with_name(f".{write.name}.new")
    beside.write_text(text)
    beside.replace(write)
    typer.echo(f"✓ {write}   next: llmctl hosts trust --all · llmctl hosts check", err=True)
