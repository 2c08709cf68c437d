"""`llmctl hosts …`: one file per verb; here they are put together."""

from __future__ import annotations

import typer

from llmctl.controller.cli.hosts import (
    apply,
    bootstrap,
    check,
    clean,
    drain,
    execute,
    facts,
    imports,
    listing,
    netmap,
    trust,
)

hosts_app = typer.Typer(
    help="The machines: list, check, apply, bootstrap, map, facts, trust, exec, drain, clean, import.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    for verb in (listing, check, apply, bootstrap, netmap, facts, trust, execute, drain, clean, imports):
        verb.register(hosts_app)
    app.add_typer(hosts_app, name="hosts")
