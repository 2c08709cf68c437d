"""`llmctl logs`: what the ranks printed, merged, each line with its host and rank."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.controller.cli.options import HostsOption, OutputOption, RunArgument, checked_output

if TYPE_CHECKING:
    from llmctl.controller.cli.session import Session
    from llmctl.controller.collect.locate import Located
    from llmctl.controller.collect.view import RunView
    from llmctl.controller.ui.console import Screen
    from llmctl.errors import LlmctlError
    from llmctl.wire.records import Event, FollowRequest

EPILOG = (
    "Examples:\n\n"
    "    llmctl logs demo-7f3a -f\n\n"
    "    llmctl logs demo-7f3a --rank 5 --tail 100\n\n"
    "    llmctl logs demo-7f3a --host b --grep 'checkpoint|loss'"
)


def register(app: typer.Typer) -> None:
    app.command("logs", epilog=EPILOG)(logs)


def logs(
    run: RunArgument = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    rank: Annotated[
        list[int] | None, typer.Option("--rank", min=0, help="Only this rank; may be repeated.")
    ] = None,
    host: Annotated[list[str] | None, typer.Option("--host", help="Only this host; may be repeated.")] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="Only this attempt.")] = None,
    tail: Annotated[
        int, typer.Option("--tail", "-n", min=-1, help="The last lines of each log only; -1: all.")
    ] = -1,
    grep: Annotated[
        str | None, typer.Option("--grep", metavar="REGEX", help="Only lines that match.")
    ] = None,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Print the ranks' output as `host:rank line` on stdout; lost connections are taken up again.

    With `-o json`, each line is one JSON object: {"host", "rank", "line"}; rank null is the launcher.
    With `--rank`, the launchers' logs are left out. A terminal gets no control sequences of the job's.
    """
    from llmctl.controller.cli.session import Session
    from llmctl.errors import ConfigError, HostErrors
    from llmctl.wire.records import FollowRequest

    try:
        pattern = re.compile(grep) if grep else None
    except re.error as error:
        raise ConfigError(f"--grep {grep!r} is not a regular expression: {error}") from error
    session = Session(hosts=hosts, output=checked_output(output))
    try:
        located = _only_hosts(session.locate(run), host)
        if rank or attempt is not None:
            _check_exists(session, located, rank or [], attempt)
        printer = _Printer(pattern, session.screen)
        request = FollowRequest(
            logs=True, ranks=tuple(rank or ()), tail=tail, attempt=attempt, until_end=follow
        )
        _print(session, located, printer, request, follow=follow)
        if printer.lost_hosts:
            raise HostErrors(list(printer.lost_hosts.values()))
    finally:
        session.close()


def _only_hosts(located: Located, names: list[str] | None) -> Located:
    from dataclasses import replace

    from llmctl.errors import NotFoundError

    if not names:
        return located
    have = {host.name: host for host in located.hosts}
    for name in names:
        if name not in have:
            raise NotFoundError(f"{located.run_id} has no host {name}", hint="its hosts: " + ", ".join(have))
    return replace(located, hosts=tuple(have[name] for name in names))


def _check_exists(session: Session, located: Located, ranks: list[int], attempt: int | None) -> None:
    """Raises NotFoundError for a rank or an attempt that the run has not: its log would be empty for ever.

    How many ranks an earlier attempt had is not known here; its ranks are taken as they are.
    """
    from llmctl.controller.collect.status import run_view
    from llmctl.errors import NotFoundError

    view = run_view(session.connect(located.hosts), located.hosts, session.archive, located.run_id)
    if attempt is not None and attempt > view.attempt:
        last = "only attempt 1" if view.attempt == 1 else f"attempts 1 to {view.attempt}"
        raise NotFoundError(f"{view.run_id} has no attempt {attempt}", hint=f"it has {last}")
    if attempt is not None and attempt < view.attempt:
        return
    have = _ranks(view, {host.name for host in located.hosts})
    for rank in ranks:
        if not any(rank in on_host for on_host in have.values()):
            listed = ", ".join(f"{name} {_span(on_host)}" for name, on_host in have.items())
            raise NotFoundError(
                f"{view.run_id} has no rank {rank} there", hint=f"its ranks, by host: {listed}"
            )


def _ranks(view: RunView, hosts: set[str]) -> dict[str, range]:
    """The global ranks of each of these hosts: a node's come after those of the nodes before it."""
    found: dict[str, range] = {}
    first = 0
    for node in sorted(view.nodes, key=lambda node: node.node_rank):
        if node.host in hosts:
            found[node.host] = range(first, first + node.nproc)
        first += node.nproc
    return found


def _span(ranks: range) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def _print(
    session: Session, located: Located, printer: _Printer, request: FollowRequest, *, follow: bool
) -> None:
    from llmctl.controller.collect.follow import Follower
    from llmctl.controller.execute.watch import watch

    connections = session.connect(located.hosts)
    retry = None if follow else 0
    with Follower(
        connections, located.hosts, session.archive, located.run_id, request, retries=retry
    ) as follower:
        watch(follower, printer, stop_peers=None)


class _Printer:
    """A watcher that prints log lines on stdout and everything else nowhere but stderr."""

    def __init__(self, pattern: re.Pattern[str] | None, screen: Screen) -> None:
        self._pattern = pattern
        self._screen = screen
        self.lost_hosts: dict[str, LlmctlError] = {}

    def metric(self, host: str, line: dict[str, Any]) -> None:
        """Metrics are not log lines."""

    def event(self, host: str, event: Event) -> None:
        """Events are not log lines."""

    def log(self, host: str, rank: int | None, lines: list[str]) -> None:
        from llmctl.controller.ui.plain import plain

        chosen = [line for line in lines if self._pattern is None or self._pattern.search(line)]
        if self._screen.json_output:
            rows = ({"host": host, "rank": rank, "line": line} for line in chosen)
            sys.stdout.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            where = f"{host}:{'launcher' if rank is None else rank}"
            shown = map(plain, chosen) if self._screen.out.is_terminal else chosen
            sys.stdout.writelines(f"{where} {line}\n" for line in shown)
        sys.stdout.flush()

    def lost(self, host: str, error: LlmctlError) -> None:
        if host not in self.lost_hosts:
            self._screen.warn(f"lost contact with {error.line()}")
        self.lost_hosts[host] = error

    def back(self, host: str) -> None:
        if self.lost_hosts.pop(host, None):
            self._screen.warn(f"contact with {host} again")

    def tick(self) -> None:
        """Nothing to redraw."""
