"""`llmctl hosts check`: facts and verdicts of every host, and of the hosts together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.controller.cli.options import (
    HostsOption,
    LimitOption,
    OutputOption,
    PoolOption,
    checked_output,
)

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.config.models import JobFile
    from llmctl.controller.config.types import Host, RunConfig
    from llmctl.controller.execute.check import Results
    from llmctl.controller.plan.deep import PairResult

EPILOG = (
    "Examples:\n\n"
    "    llmctl hosts check\n\n"
    "    llmctl hosts check -f job.yaml             (fit for this job?)\n\n"
    "    llmctl hosts check --deep -f job.yaml      (slow device, sick host, stores, a trial checkpoint)\n\n"
    "    llmctl hosts check --limit 'gpu-*' --limit rack=r7"
)


def register(app: typer.Typer) -> None:
    app.command("check", epilog=EPILOG)(check)


def check(
    file: Annotated[
        str | None, typer.Option("--file", "-f", metavar="FILE", help="Judge the hosts for this job.")
    ] = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Also work for seconds: matrix products, all-reduces in pairs, and with -f the job's stores "
            "and a trial checkpoint.",
        ),
    ] = False,
    pool: PoolOption = None,
    limit: LimitOption = None,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Ask every host for its facts and say whether it is fit to train; exit 10 to 12 where one is not.

    One round trip per host, all at once. A verdict is ok, a warning or unfit, and says what to do. Then
    the hosts are compared: versions that differ, one machine under two names, unequal MTUs. --deep finds
    the host that is slow, fails in collectives or does not reach a store.
    """
    from llmctl.controller.cli.hosts.choose import chosen_hosts
    from llmctl.controller.cli.hosts.deep import run_deep
    from llmctl.controller.cli.session import Session
    from llmctl.controller.execute.check import Checked
    from llmctl.controller.ui.hostcheck import show_results
    from llmctl.controller.ui.hostdeep import show_deep
    from llmctl.errors import HostErrors, LlmctlError
    from llmctl.wire import codec

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        config = None if file is None else _of_job(session, file, pool, limit)
        chosen = chosen_hosts(session, pool, limit) if config is None else config.hosts
        results = _check(session, chosen, config.job if config else None)
        pairs: tuple[PairResult, ...] = ()
        if deep:
            results, pairs = run_deep(session, chosen, results, config)
    finally:
        session.close()
    if session.json:
        told = {"pairs": codec.encode(pairs)} if deep else {}
        session.screen.document("hosts-check", {"hosts": document(results), **told})
    else:
        show_results(session.screen, results)
        if deep:
            show_deep(session.screen, results, pairs)
    errors = [value for value in results.values() if isinstance(value, LlmctlError)]
    errors += [p for value in results.values() if isinstance(value, Checked) for p in value.problems]
    if errors:
        raise HostErrors(errors)


def _of_job(session: Session, file: str, pool: str | None, limit: list[str] | None) -> RunConfig:
    """The hosts that `train` would take, and the job with its paths made absolute."""
    from llmctl.controller.config.job import load_job
    from llmctl.controller.config.overrides import JobOverrides

    overrides = JobOverrides(pool=pool, limit=tuple(limit or ()))
    config = session.resolve(load_job(Path(file)), Path(file).absolute().parent, overrides)
    for note in config.notes:
        session.screen.warn(note)
    return config


def _check(session: Session, chosen: tuple[Host, ...], job: JobFile | None) -> Results:
    from llmctl.controller.execute.check import check_hosts
    from llmctl.controller.execute.identity import Recogniser
    from llmctl.controller.ui.hostcheck import Board

    connections = session.connect(chosen)
    with Board(session.screen, [host.name for host in chosen]) as board:
        return check_hosts(chosen, connections, Recogniser(session.book), job=job, answered=board.answered)


def document(results: Results) -> dict[str, Any]:
    """Per host its facts, problems (unfit only) and every verdict; or why it could not be asked."""
    from llmctl.errors import LlmctlError
    from llmctl.wire import codec

    return {
        name: {"error": value.message, "stage": value.stage, "hint": value.hint}
        if isinstance(value, LlmctlError)
        else {
            "facts": codec.encode(value.facts),
            "problems": [p.message for p in value.problems],
            "verdicts": codec.encode(value.verdicts),
            "notes": list(value.notes),
            **({"deep": codec.encode(value.deep)} if value.deep is not None else {}),
        }
        for name, value in results.items()
    }
