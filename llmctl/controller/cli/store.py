"""`llmctl store check`: try on a store what training relies on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.controller.cli.options import OutputOption, checked_output

if TYPE_CHECKING:
    from llmctl.storage.drill import Report

store_app = typer.Typer(help="Try the place where data and checkpoints are.", no_args_is_help=True)

EPILOG = (
    "Examples:\n\n"
    "    llmctl store check s3://bucket/corpus\n\n"
    "    llmctl store check hdfs://namenode:8020/user/me --seconds 60 --size 512\n\n"
    "    llmctl store check /mnt/cephfs/runs -o json\n\n"
    "Everything happens in a folder of its own below URI, which is removed at the end. Credentials come from "
    "the usual places: AWS_* or a profile, HADOOP_CONF_DIR, stores.yaml. Exit code 0: fit."
)


def register(app: typer.Typer) -> None:
    app.add_typer(store_app, name="store")


@store_app.callback()
def _root() -> None:
    """Try the place where data and checkpoints are."""


@store_app.command("check", epilog=EPILOG)
def check(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A folder: path, s3://, hdfs://, webhdfs:// ...")],
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="About how long it may take.")] = 30.0,
    size: Annotated[
        int, typer.Option("--size", min=1, metavar="MB", help="At most so much for the throughput.")
    ] = 64,
    output: OutputOption = None,
) -> None:
    """Write, read, replace, race, rename, list and time a store: is it fit for data and checkpoints?"""
    from llmctl.controller.cli.session import Session
    from llmctl.controller.ui.drill import DrillView, verdict
    from llmctl.storage.drill import drill

    session = Session(output=checked_output(output))
    with DrillView(session.screen, uri) as view:
        report = drill(uri, seconds=seconds, size=size * 1_000_000, begins=view.begins, found=view.found)
    if session.json:
        session.screen.document("store-check", _plain(report))
    elif report.fit:
        session.screen.result(verdict(report))
    if report.failed:
        raise _unfit(report)


def _plain(report: Report) -> dict[str, object]:
    checks = [
        {
            "name": finding.name,
            "ok": finding.error is None,
            "text": finding.text,
            "seconds": round(finding.seconds, 3),
        }
        for finding in report.findings
    ]
    numbers = {name: round(value, 6) for name, value in report.numbers.items()}
    return {
        "uri": report.uri,
        "fit": report.fit,
        "atomic_rename": report.atomic_rename,
        "checks": checks,
        "numbers": numbers,
    }


def _unfit(report: Report) -> Exception:
    """The first failure, whose class chooses the exit code, with the names of all."""
    first = report.failed[0].error
    assert first is not None  # noqa: S101 - `failed` are those with one
    names = ", ".join(finding.name for finding in report.failed)
    hint = first.hint or "training would lose or tear data here: use another store"
    return type(first)(f"{report.uri} is not fit ({names}): {first.message}", hint=hint, stage=first.stage)
