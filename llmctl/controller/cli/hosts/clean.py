"""`llmctl hosts clean`: remove from the hosts what no run needs any more."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

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
    from llmctl.controller.config.types import Host
    from llmctl.errors import LlmctlError
    from llmctl.wire.records import CleanReport, CleanRequest

EPILOG = (
    "Examples:\n\n"
    "    llmctl hosts clean --dry-run\n\n"
    "    llmctl hosts clean --older-than 30d --runs     (ended runs too, with logs and checkpoints)"
)
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def register(app: typer.Typer) -> None:
    app.command("clean", epilog=EPILOG)(clean)


def clean(
    older_than: Annotated[
        str,
        typer.Option("--older-than", metavar="AGE", help="What was last used longer ago: 12h, 7d, 4w."),
    ] = "7d",
    runs: Annotated[
        bool, typer.Option("--runs", help="Ended runs too: their logs and checkpoints on the hosts.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    pool: PoolOption = None,
    limit: LimitOption = None,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Remove old code trees, environments, agent archives and cached data; never what a live run needs.

    Ended runs stay unless --runs is given: what was not pulled is lost with them.
    """
    from llmctl.controller.cli.hosts.choose import chosen_hosts
    from llmctl.controller.cli.session import Session
    from llmctl.errors import HostErrors, LlmctlError
    from llmctl.wire.records import CleanRequest

    age = parse_age(older_than)
    session = Session(hosts=hosts, output=checked_output(output))
    try:
        chosen = chosen_hosts(session, pool, limit)
        request = CleanRequest(older_than_s=age, runs=runs, keep_agent=session.archive.hash, dry_run=dry_run)
        reports = _clean(session, chosen, request)
        _show(session, reports, dry_run)
    finally:
        session.close()
    errors = [value for value in reports.values() if isinstance(value, LlmctlError)]
    if errors:
        raise HostErrors(errors)


def parse_age(text: str, flag: str = "--older-than") -> float:
    """Seconds of `90s`, `30m`, `12h`, `7d`, `4w`. Raises ConfigError."""
    from llmctl.errors import ConfigError

    match = re.fullmatch(r"(\d{1,6})([smhdw])", text.strip())
    if match is None:
        raise ConfigError(f"{flag} {text!r} is not an age", hint="write it as 12h, 7d or 4w")
    return float(int(match[1]) * UNITS[match[2]])


def _clean(
    session: Session, chosen: tuple[Host, ...], request: CleanRequest
) -> dict[str, CleanReport | LlmctlError]:
    from llmctl.controller.backends.agent import AgentClient

    connections = session.connect(chosen)

    def one(host: Host) -> CleanReport:
        return AgentClient(connections.get(host.name), host, session.archive).clean(request)

    return connections.each(chosen, one)


def _show(session: Session, reports: dict[str, CleanReport | LlmctlError], dry_run: bool) -> None:
    from llmctl.controller.ui.hostclean import clean_lines
    from llmctl.errors import LlmctlError
    from llmctl.wire import codec

    done = {name: value for name, value in reports.items() if not isinstance(value, LlmctlError)}
    if session.json:
        shown = {
            name: {"error": value.message}
            if isinstance(value, LlmctlError)
            else {"bytes": sum(item.bytes for item in value.items), **codec.encode(value)}
            for name, value in reports.items()
        }
        session.screen.document("hosts-clean", {"dry_run": dry_run, "hosts": shown})
        return
    for name, report in done.items():
        for line in clean_lines(name, report, dry_run=dry_run):
            session.screen.result(line)
