"""Options that several verbs share, so that they are spelt and explained the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

HostsOption = Annotated[
    str | None,
    typer.Option(
        "--hosts", metavar="FILE", help="Hosts file; else $LLMCTL_HOSTS, ./hosts.yaml, the user's own."
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FORMAT", help="text, or json: one document on stdout."),
]
RunArgument = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="Run id, a unique start of it, or the job's name; else the newest."),
]
JobOption = Annotated[
    str | None,
    typer.Option("--file", "-f", metavar="FILE", help="Job file; else ./job.yaml."),
]
PoolOption = Annotated[str | None, typer.Option("--pool", metavar="NAME", help="Pool of the hosts file.")]
SuperviseOnOption = Annotated[
    str | None,
    typer.Option(
        "--supervise-on",
        metavar="HOST",
        help="Let this host of the hosts file watch over the run: this machine may then go away.",
    ),
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="GLOB",
        help="Only hosts whose name matches, or a label: gpu=h*; !GLOB leaves out. May be repeated.",
    ),
]


def checked_output(value: str | None) -> str | None:
    """`-o` as the settings want it. Raises ConfigError for another word."""
    from llmctl.errors import ConfigError

    if value not in (None, "text", "json"):
        raise ConfigError(f"-o must be text or json, found {value!r}")
    return value
