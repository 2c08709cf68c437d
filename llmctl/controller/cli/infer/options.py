"""Options that the verbs of `llmctl infer` share."""

from __future__ import annotations

from typing import Annotated

import typer

ShapeOption = Annotated[str | None, typer.Option("-j", metavar="NxM", help="N hosts, M ranks on each: 2x4.")]
NameOption = Annotated[str | None, typer.Option("--name", help="First part of the run's id.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the job: infer.max_batch=32."),
]
EnvOption = Annotated[
    list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="Environment of the processes.")
]
DetachOption = Annotated[bool, typer.Option("--detach", "-d", help="Start and return; the run id on stdout.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, show the plan, start nothing.")
]
