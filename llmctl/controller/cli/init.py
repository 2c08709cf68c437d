"""`llmctl init`: files to start from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

EPILOG = (
    "Examples:\n\n"
    "    llmctl init                       (the built-in recipe)\n\n"
    "    llmctl init --template script     (your own torchrun script)\n\n"
    "    llmctl init --template image      (your own model, trained by llmctl; also: text, speech)"
)


def register(app: typer.Typer) -> None:
    app.command("init", epilog=EPILOG)(init)


def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to.")] = Path(),
    template: Annotated[
        str, typer.Option("--template", "-t", metavar="NAME", help="recipe, script, text, image or speech.")
    ] = "recipe",
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a commented hosts.yaml and job.yaml to start from."""
    from llmctl.controller.config.templates import lay_down
    from llmctl.controller.ui.console import Screen

    screen = Screen()
    files = lay_down(template, folder, values={"PYTHON": sys.executable}, force=force)
    for path in files:
        screen.say(f"✓ {path}")
    if any(path.name == "data.py" for path in files):
        screen.say(
            "next: python data.py samples · llmctl data shard samples shards --format tar · llmctl train"
        )
        return
    screen.say(
        "next: put your machines into hosts.yaml, then   llmctl hosts trust --all · llmctl hosts check"
    )
