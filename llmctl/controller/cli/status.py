"""`llmctl status`: all runs in a table, or one run in full."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.controller.cli.options import HostsOption, OutputOption, RunArgument, checked_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmctl.controller.cli.session import Session
    from llmctl.controller.collect.view import RunView
    from llmctl.controller.config.types import Host
    from llmctl.controller.ledger.records import RunRecord
    from llmctl.errors import LlmctlError

EPILOG = (
    "Examples:\n\n"
    "    llmctl status\n\n"
    "    llmctl status demo-7f3a -o json\n\n"
    "    llmctl status --all         (ask the hosts too: runs that others started)"
)
REFRESH_S = 2.0


def register(app: typer.Typer) -> None:
    app.command("status", epilog=EPILOG)(status)


def status(
    run: RunArgument = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", "-a", help="Ask the hosts (of the hosts file, or of RUN), not only the ledger."
        ),
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh every 2 s until Ctrl-C.")] = False,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="At most so many runs.")] = 20,
    hosts: HostsOption = None,
    output: OutputOption = None,
) -> None:
    """Show runs: state, nodes, step, loss, speed, age; for one run also each host and the first failure.

    States: starting, running, lost-contact, restarting (between two attempts), succeeded, failed,
    cancelled, preempted. Losing contact is not failing:
    the job may be fine. A run that has ended is shown from the ledger, without asking a host.

    With `-w`, a lost connection ends nothing: the last view stays, with what is wrong. `-w -o json` prints
    one document per line and refresh; "error" tells why its content is not fresh, else it is null.
    """
    from llmctl.controller.cli.session import Session

    session = Session(hosts=hosts, output=checked_output(output))
    try:
        if run is not None:
            code = _one(session, run, watch=watch, ask=everything)
        else:
            code = _all(session, everything=everything, watch=watch, number=number)
    finally:
        session.close()
    raise typer.Exit(code)


def _all(session: Session, *, everything: bool, watch: bool, number: int) -> int:
    from llmctl.controller.ui.rows import show_rows

    def once() -> tuple[list[RunView | RunRecord], list[LlmctlError]]:
        return _rows(session, everything=everything, number=number)

    if watch:
        _watch_all(session, once)
        return 0
    rows, errors = once()
    drained = {name: mark.reason for name, mark in session.book.drained().items()}
    if session.json:
        session.screen.document("status", {**_document(rows, errors), "drained": drained})
    else:
        show_rows(session.screen, rows, errors)
        for name, reason in drained.items():
            session.screen.warn(f"{name} is drained" + (f": {reason}" if reason else ""))
    return 0


def _watch_all(
    session: Session, once: Callable[[], tuple[list[RunView | RunRecord], list[LlmctlError]]]
) -> None:
    """Until Ctrl-C, or until nobody reads any more."""
    from llmctl.controller.ui.live import live, refreshed, with_error
    from llmctl.controller.ui.rows import live_rows

    answers = refreshed(once, REFRESH_S)
    if session.json:
        for (rows, errors), error in answers:
            document = {**_document(rows, errors), "error": error and error.line()}
            session.screen.document("status", document, one_line=True)
    else:
        out = session.screen.out
        live(session.screen, (with_error(live_rows(*told, out.width), error) for told, error in answers))


def _document(rows: list[RunView | RunRecord], errors: list[LlmctlError]) -> dict[str, Any]:
    from llmctl.controller.ui.rows import row_document

    return {
        "runs": [row_document(row) for row in rows],
        "unreachable": [{"host": error.host, "error": error.message} for error in errors],
    }


def _rows(
    session: Session, *, everything: bool, number: int
) -> tuple[list[RunView | RunRecord], list[LlmctlError]]:
    """Ended runs as the ledger has them; the others as their hosts say now. Newest first."""
    records = list(session.ledger.list(number))
    views, errors = ([], []) if records and not everything else _from_inventory(session)
    known = {view.run_id for view in views}
    rows = [*views, *_from_ledger(session, [r for r in records if r.run_id not in known])]
    return sorted(rows, key=lambda row: row.created_at, reverse=True)[:number], errors


def _from_inventory(session: Session) -> tuple[list[RunView], list[LlmctlError]]:
    """Every run that the hosts file's hosts know; without a hosts file there are none."""
    from llmctl.errors import ConfigError

    try:
        hosts = session.inventory.all_hosts()
    except ConfigError:
        if session.settings.hosts is not None:
            raise
        return [], []
    from llmctl.controller.collect.status import all_runs

    views, errors = all_runs(session.connect(hosts), hosts, session.archive)
    by_name = {host.name: host for host in hosts}
    for view in views:
        session.remember(view, [by_name[node.host] for node in view.nodes if node.host in by_name])
    return views, errors


def _from_ledger(session: Session, records: list[RunRecord]) -> list[RunView | RunRecord]:
    """Rows of known runs; all hosts of those that go on are asked at once."""
    rows: list[RunView | RunRecord] = []
    open_records = [record for record in records if not record.settled and record.hosts]
    rows += [_view_of(r) or r for r in records if r not in open_records]
    if not open_records:
        return rows
    from llmctl.controller.collect.locate import host_of
    from llmctl.controller.collect.status import ask_groups

    groups: dict[tuple[Host, ...], list[RunRecord]] = {}
    for record in open_records:
        groups.setdefault(tuple(host_of(host) for host in record.hosts), []).append(record)
    told = ask_groups(list(groups), session.connect, session.archive)
    for hosts, members in groups.items():
        views, errors = told[hosts]
        for record in members:
            rows.append(_row(session, record, hosts, views.get(record.run_id), errors))
    return rows


def _row(
    session: Session,
    record: RunRecord,
    hosts: tuple[Host, ...],
    view: RunView | None,
    errors: list[LlmctlError],
) -> RunView | RunRecord:
    """The hosts' word; where none could be asked, what was last seen, under the state that this is."""
    from dataclasses import replace

    from llmctl.controller.cli.owed import deliver
    from llmctl.wire.states import RunState

    if view is not None:
        session.remember(view, hosts)
        deliver(session, view, hosts)
        return view
    if errors:
        return replace(record, state=RunState.LOST_CONTACT, reason=errors[0].line())
    return replace(record, state=RunState.FAILED, reason="its hosts have no such run: it never started")


def _one(session: Session, key: str, *, watch: bool, ask: bool) -> int:
    remembered = None if ask else _ended_view(session, key)
    if remembered is not None:
        _show_one(session, remembered)
        return 0
    from llmctl.controller.cli.owed import deliver
    from llmctl.controller.collect.status import run_view

    located = session.locate(key)
    connections = session.connect(located.hosts)

    def once() -> RunView:
        view = run_view(connections, located.hosts, session.archive, located.run_id)
        session.remember(view, located.hosts)
        deliver(session, view, located.hosts)
        return view

    if watch:
        _watch_one(session, once)
        return 0
    _show_one(session, once())
    return 0


def _watch_one(session: Session, once: Callable[[], RunView]) -> None:
    """Until Ctrl-C, or until nobody reads any more."""
    from llmctl.controller.ui.live import live, refreshed, with_error
    from llmctl.controller.ui.runs import detail

    answers = refreshed(once, REFRESH_S)
    if session.json:
        for view, error in answers:
            document = {"run": view, "shown_at": time.time(), "error": error and error.line()}
            session.screen.document("run", document, one_line=True)
    else:
        live(session.screen, (with_error(detail(view), error) for view, error in answers))


def _ended_view(session: Session, key: str) -> RunView | None:
    """The last view of a run that has ended; what can't change any more costs no connection."""
    record = session.ledger.get(key)
    return _view_of(record) if record is not None and record.settled else None


def _view_of(record: RunRecord) -> RunView | None:
    from llmctl.controller.collect.view import RunView
    from llmctl.errors import IntegrityError
    from llmctl.wire import codec

    if not record.view:
        return None
    try:
        return codec.decode(RunView, record.view)
    except IntegrityError:  # of another version of llmctl: the hosts know
        return None


def _show_one(session: Session, view: RunView) -> None:
    from llmctl.controller.ui.runs import detail

    if session.json:
        session.screen.document("run", {"run": view, "shown_at": time.time()})
    else:
        session.screen.out.print(detail(view))
