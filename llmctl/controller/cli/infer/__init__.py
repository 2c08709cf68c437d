"""`llmctl infer`: use a model on every host of a pool."""

from __future__ import annotations

import typer

from llmctl.controller.cli.infer import batch, serve


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        name="infer",
        help="Use a model on the hosts of a pool: a file of prompts (batch), or an endpoint (serve).",
        no_args_is_help=True,
    )
    batch.register(group)
    serve.register(group)
    app.add_typer(group)
