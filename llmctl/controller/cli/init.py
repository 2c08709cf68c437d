"""`llmctl init`: files to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = (
    "Examples:\n\n"
    "    llmctl init                       (the built-in recipe)\n\n"
    "    llmctl init --template script     (your own torchrun script)"
)


def register(app: typer.Typer) -> None:
    app.command("init", epilog=EPILOG)(init)


def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to.")] = Path(),
    template: Annotated[
        str, typer.Option("--template", "-t", metavar="NAME", help="recipe or script.")
    ] = "recipe",
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a commented hosts.yaml and job.yaml to start from."""
    from llmctl.controller.config.templates import lay_down
    from llmctl.controller.ui.console import Screen

    screen = Screen()
    for path in lay_down(template, folder, force=force):
        screen.say(f"✓ {path}")
    screen.say(
        "next: put your machines into hosts.yaml, then   llmctl hosts trust --all · llmctl hosts check"
    )
